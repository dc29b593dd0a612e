"""What can be held of `infra/kubernetes` without a cluster: what the files name exists, every
object fits its schema strictly, and the pods are what training needs. Where kubectl is at hand, its
kustomize builds the overlays, and what comes out is held to the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gan_train.recipes import load as load_recipe

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
VERSION = "1.37"
FILES = sorted(KUBERNETES.rglob("kustomization.yaml"))
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
OVERLAYS = ("cluster", "job", "job-spot-queued")

Object = dict[str, Any]


def documents(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document]


def sources() -> Iterator[Object]:
    """All objects of the source files. The job gets its cluster as its component gives it."""
    cluster = documents((KUBERNETES / "base/raycluster.yaml").read_text(encoding="utf-8"))[0]
    for file in FILES:
        for name in documents(file.read_text(encoding="utf-8"))[0].get("resources", ()):
            if (file.parent / name).is_file():
                for found in documents((file.parent / name).read_text(encoding="utf-8")):
                    if found["kind"] == "RayJob":
                        found["spec"]["rayClusterSpec"] = cluster["spec"]
                    yield found


def overlay(name: str) -> dict[str, Object]:
    """What kustomize makes of an overlay: its objects by kind."""
    result = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = documents(result.stdout)
    kinds = {document["kind"]: document for document in found}
    assert len(kinds) == len(found)
    return kinds


def cluster_of(document: Object) -> Object | None:
    spec: Object = document["spec"]
    return {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec")}.get(document["kind"])


def pods_of(cluster: Object) -> list[Object]:
    """The pod templates of a cluster: the head's first."""
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    return [group["template"] for group in groups]


def check(document: Object) -> None:
    """Hold an object to its schema, and its pods to Kubernetes' own.

    Raises a ValidationError, also for a field that nobody knows."""
    if document["apiVersion"].partition("/")[0] in ("v1", "networking.k8s.io"):
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    schema = yaml.safe_load((KUBERNETES / "custom-kinds.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    for template in pods_of(found) if (found := cluster_of(document)) else ():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def check_pods(cluster: Object, claim: str) -> None:
    """The workspace for all, memory for shared tensors, no privileges, time for a checkpoint."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    for template in pods_of(cluster):
        assert template["metadata"]["labels"] == {"app": "gan-train"}, "as the policy selects"
        pod = template["spec"]
        assert pod["terminationGracePeriodSeconds"] >= 120
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["workspace"]["persistentVolumeClaim"] == {"claimName": claim}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"workspace": "/workspace", "shm": "/dev/shm"}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]
    for template in pods_of(cluster)[1:]:  # a worker's pod says that it goes, and has time for it
        (container,) = template["spec"]["containers"]
        (drains,) = [each["value"] for each in container["env"] if each["name"] == DRAIN]
        assert int(drains) + 15 <= template["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.parent.relative_to(KUBERNETES)))
def test_what_a_kustomization_names_is_there(file: Path) -> None:
    (tree,) = documents(file.read_text(encoding="utf-8"))
    named = [
        name for key in ("resources", "components", "transformers") for name in tree.get(key, ())
    ]
    named += [patch["path"] for patch in tree.get("patches", ()) if "path" in patch]
    for name in named:
        path = file.parent / name
        assert path.is_file() or (path / "kustomization.yaml").is_file(), name


def test_sources_fit_their_schemas_and_training() -> None:
    found = list(sources())
    kinds = {document["kind"]: document for document in found}
    assert len(kinds) == len(found) == 8
    for document in found:
        check(document)
    claim = kinds["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    check_pods(kinds["RayCluster"]["spec"], claim["metadata"]["name"])
    selected = kinds["NetworkPolicy"]["spec"]["podSelector"]
    assert selected == kinds["PodMonitor"]["spec"]["selector"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", ("spec", "rayVersoin")),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containres")),
        ("RayJob", ("spec", "entryPoint")),
        ("NetworkPolicy", ("spec", "podSelectors")),
        ("ClusterQueue", ("spec", "cohort")),
    ],
)
def test_a_field_that_nobody_knows_is_noticed(kind: str, path: tuple[str, ...]) -> None:
    document = {document["kind"]: document for document in sources()}[kind]
    check(document)
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "x"
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_the_job_trains_a_recipe_that_its_gpus_can_carry_and_its_queue_admits() -> None:
    kinds = {document["kind"]: document for document in sources()}
    job = kinds["RayJob"]["spec"]
    program, command, recipe, *overrides = job["entrypoint"].split()
    assert (program, command) == ("gan-train", "run")
    assert overrides[::2] == ["--set"] * (len(overrides) // 2)
    config = load_recipe(str(ROOT / recipe), overrides[1::2])
    assert config.cluster.address == "auto" and str(config.workspace) == "/workspace"
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["replicas"] * int(limits["nvidia.com/gpu"]) == config.cluster.workers
    per_pod = int(limits["nvidia.com/gpu"]) * config.cluster.cpus_per_worker
    assert int(limits["cpu"]) > per_pod, "sharding tasks need CPUs beside the workers"
    (resources,) = kinds["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = resources["flavors"]
    quota = {each["name"]: each["nominalQuota"] for each in flavor["resources"]}
    assert int(quota["nvidia.com/gpu"]) >= config.cluster.workers
    assert job["shutdownAfterJobFinishes"] is True, "Kueue asks for it"


@pytest.mark.kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_built(name: str) -> None:
    kinds = overlay(name)
    for document in kinds.values():
        check(document)
    assert ("RayJob" in kinds) == ("RayCluster" not in kinds) == (name != "cluster")
    cluster = cluster_of(kinds["RayCluster" if name == "cluster" else "RayJob"])
    assert cluster is not None
    check_pods(cluster, kinds["PersistentVolumeClaim"]["metadata"]["name"])
    head, worker = pods_of(cluster)
    spot = name == "job-spot-queued"
    assert "affinity" not in head["spec"], "a lost head ends the job"
    assert ("affinity" in worker["spec"]) == spot
    assert len(worker["spec"]["tolerations"]) == (3 if spot else 1)
    if spot:
        labels = kinds["RayJob"]["metadata"]["labels"]
        assert labels == {"kueue.x-k8s.io/queue-name": kinds["LocalQueue"]["metadata"]["name"]}
        assert (
            kinds["LocalQueue"]["spec"]["clusterQueue"] == kinds["ClusterQueue"]["metadata"]["name"]
        )
