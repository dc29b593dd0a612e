"""What can be held of `infra/` without Docker: nothing listens beyond the loopback, no secret has a
default, every image is pinned, Ray's own checks accept its cluster files, and the dashboard and the
alerts ask for metrics that a training exports. `make lint` runs this file after the linters."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compute import metrics

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
CLUSTERS = sorted(path.name for path in (INFRA / "ray").glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    value = yaml.safe_load((INFRA / name).read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


# ---- containers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found = load("compose/compose.yaml")["services"]
    assert isinstance(found, dict)
    return found


def words(service: dict[str, Any]) -> str:
    return " ".join(service["command"])


def test_compose_publishes_on_the_loopback_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert {port.split(":")[0] for port in ports} == {"127.0.0.1"}
    assert sorted(int(port.split(":")[1]) for port in ports) == [3000, 4200, 5000, 8265, 9090]
    assert all(service.get("network_mode") is None for service in services.values())


def test_compose_demands_every_secret() -> None:
    text = (INFRA / "compose/compose.yaml").read_text(encoding="utf-8")
    example = (INFRA / "compose/.env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|TOKEN)\w*)", text))
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert named == required == set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    assert (INFRA / "compose/.gitignore").read_text().split() == [".env"]


def test_compose_servers_ask_for_a_secret(services: dict[str, dict[str, Any]]) -> None:
    assert "--app-name=basic-auth" in words(services["mlflow"])
    for service, variable in {
        "objects": "AWS_SECRET_ACCESS_KEY",
        "mlflow": "MLFLOW_AUTH_ADMIN_PASSWORD",
        "prefect": "PREFECT_SERVER_API_AUTH_STRING",
        "ray-head": "RAY_AUTH_TOKEN",
        "ray-worker": "RAY_AUTH_TOKEN",
        "worker": "PREFECT_API_AUTH_STRING",
        "grafana": "GF_SECURITY_ADMIN_PASSWORD",
    }.items():
        assert variable in services[service]["environment"]


def test_compose_waits_for_health_and_pins_images(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert "test" in service["healthcheck"], name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), name
        for source in service.get("volumes", ()):
            path = source.split(":")[0]
            assert not path.startswith(".") or (INFRA / "compose" / path).exists(), path
        for other in service.get("depends_on", ()):
            assert other in services


def test_the_image_runs_as_a_number_and_holds_no_secret() -> None:
    lines = (INFRA / "docker/Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 10001:10001" in lines
    assert lines[-1] == "FROM runtime", "the default target is the plain runtime"
    declared = [line for line in lines if line.startswith(("ARG", "ENV"))]
    assert not [line for line in declared if re.search("PASSWORD|SECRET|TOKEN", line)]
    allowed = (INFRA / "docker/Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for line in lines:  # what is copied from the project exists in it, and is sent to the build
        copied = re.fullmatch(r"COPY ((?:[\w./-]+ )+)[\w./-]+", line)
        for source in copied[1].split() if copied else ():
            assert (ROOT / source).exists() and f"!{source}" in allowed, line
    bases = {line.split("=")[1] for line in lines if line.startswith("ARG BASE_IMAGE")}
    compose = (INFRA / "compose/compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"BASE_IMAGE:-([^}]+)", compose)) == bases


def test_nodes_are_drained_in_the_time_that_they_get(services: dict[str, dict[str, Any]]) -> None:
    from ray._private import ray_constants

    drains = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, drains), "Ray reads it"
    worker = services["ray-worker"]
    assert (worker["environment"][drains], worker["stop_grace_period"]) == ("100", "2m")
    for name in CLUSTERS:
        start = load(f"ray/{name}")["worker_start_ray_commands"][-1]
        assert f"--setenv={drains}=100 " in start and "ray start --block " in start, name
        assert "--property=KillMode=mixed " in start and "TimeoutStopSec=120 " in start, name


# ---- Ray's own launcher ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(f"ray/{name}")
    validate_config(prepare_config(config))
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command and "--metrics-export-port=8080" in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_ray_refuses_what_it_does_not_know() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(f"ray/{CLUSTERS[0]}") | {"max_wokers": 2}
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        validate_config(prepare_config(config))


# ---- dashboard and alerts ----------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    groups = load("monitoring/alerts.yaml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_dashboards_and_alerts_ask_for_what_is_exported() -> None:
    asked = {rule["alert"]: rule["expr"] for rule in rules()}
    for path in (INFRA / "monitoring/dashboards").glob("*.json"):
        board = json.loads(path.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            asked[panel["title"]] = " ".join(target["expr"] for target in panel["targets"])
        for variable in board["templating"]["list"]:
            asked[variable["name"]] = variable["query"]["query"]
    named = {title: set(re.findall(r"\bray_\w+", expr)) for title, expr in asked.items()}
    exported = metrics.exported()
    assert len(named) > 20
    assert not {title: names - exported for title, names in named.items() if names - exported}
    shown = set[str]().union(*named.values())
    assert shown == exported, "what nobody sees need not be exported"


def test_alerts_ask_for_causes_that_are_counted() -> None:
    text = (INFRA / "monitoring/alerts.yaml").read_text(encoding="utf-8")
    causes = set(re.findall(r'cause="(\w+)"', text))
    assert causes and causes <= set(metrics.CAUSES)


def test_every_alert_is_told_and_has_its_section_in_the_runbook() -> None:
    runbook = (INFRA / "RUNBOOK.md").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert f"\n### {rule['alert']}\n" in runbook, rule["alert"]


@pytest.mark.promtool
def test_alerts_come_when_they_should() -> None:
    for check in (
        ("check", "config", "monitoring/prometheus.yaml"),
        ("test", "rules", "monitoring/alerts.test.yaml"),
    ):
        result = subprocess.run(
            ["promtool", *check], cwd=INFRA, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
