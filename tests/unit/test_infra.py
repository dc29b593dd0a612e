"""What can be held of `infra/` without Docker or Kubernetes: it parses, Ray's own checks accept its
cluster file, nothing listens beyond the loopback, and no password has a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def load(name: str) -> dict[str, Any]:
    value = yaml.safe_load((INFRA / name).read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def words(service: dict[str, Any]) -> str:
    return " ".join(service["command"])


def test_compose_publishes_on_the_loopback_only() -> None:
    services = load("compose/compose.yaml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert sorted(ports) == ["127.0.0.1:4200:4200", "127.0.0.1:5000:5000"]
    assert all(service.get("network_mode") is None for service in services.values())


def test_compose_demands_every_password() -> None:
    text = (INFRA / "compose/compose.yaml").read_text(encoding="utf-8")
    example = (INFRA / "compose/.env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"\$\{(\w*(?:PASSWORD|SECRET)\w*)", text))
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert named == required == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert (INFRA / "compose/.gitignore").read_text().split() == [".env"]


def test_compose_servers_ask_for_a_password() -> None:
    services = load("compose/compose.yaml")["services"]
    assert "--app-name=basic-auth" in words(services["mlflow"])
    for service, variable in {
        "mlflow": "MLFLOW_AUTH_ADMIN_PASSWORD",
        "prefect": "PREFECT_SERVER_API_AUTH_STRING",
        "worker": "PREFECT_API_AUTH_STRING",
    }.items():
        assert variable in services[service]["environment"]


def test_the_image_runs_as_a_number_and_holds_no_secret() -> None:
    lines = (INFRA / "docker/Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 10001:10001" in lines
    assert lines[-1] == "FROM runtime", "the default target is the plain runtime"
    declared = [line for line in lines if line.startswith(("ARG", "ENV"))]
    assert not [line for line in declared if re.search("PASSWORD|SECRET|TOKEN", line)]
    for line in lines:  # what is copied from the project exists in it
        copied = re.fullmatch(r"COPY ((?:[\w./-]+ )+)[\w./-]+", line)
        for source in copied[1].split() if copied else ():
            assert (ROOT / source).exists(), line


def test_ray_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load("ray/cluster.yaml")
    validate_config(prepare_config(config))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


@pytest.mark.parametrize(
    ("name", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")]
)
def test_kuberay_pods_share_the_workspace_and_drop_privileges(name: str, kind: str) -> None:
    document = load(f"kuberay/{name}")
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", kind)
    cluster = document["spec"] if kind == "RayCluster" else document["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    claim = load("kuberay/workspace.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"][:1]]
        assert claims == [claim["metadata"]["name"]]
        for container in pod["containers"]:
            assert container["volumeMounts"][0] == {"name": "workspace", "mountPath": "/workspace"}
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_kuberay_job_runs_a_recipe_that_its_gpus_can_carry() -> None:
    from gan_train.recipes import load as load_recipe

    job = load("kuberay/rayjob.yaml")["spec"]
    program, command, recipe, *overrides = job["entrypoint"].split()
    assert (program, command) == ("gan-train", "run")
    assert overrides[::2] == ["--set"] * (len(overrides) // 2)
    config = load_recipe(str(ROOT / recipe), overrides[1::2])
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["replicas"] * int(limits["nvidia.com/gpu"]) == config.cluster.workers
    per_pod = int(limits["nvidia.com/gpu"]) * config.cluster.cpus_per_worker
    assert int(limits["cpu"]) > per_pod, "sharding tasks need CPUs beside the workers"
    assert config.cluster.address == "auto" and str(config.workspace) == "/workspace"
