"""Services are started together or not at all; nothing secret is on a command line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gan_train.errors import UserError
from gan_train.files.locks import locked_now
from pipelines.cli.main import main
from pipelines.stack import control, services
from pipelines.stack.control import down, states, up
from pipelines.stack.processes import marked
from pipelines.stack.record import MLFLOW, PREFECT, RAY, SERVICES, WORKER, Service, Stack
from pipelines.stack.services import Start, free_ports, start_of

# services outlive the command that has started them
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

SLEEPS = ("-c", "import time; print('ready', flush=True); time.sleep(600)")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack.of(tmp_path)
    yield stack
    down(stack, print)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Programs that take the place of the services; they are healthy from when they print `ready`
    until they end."""
    programs = dict.fromkeys(SERVICES, SLEEPS)
    monkeypatch.setattr(control, "start_of", lambda stack, name, cpus: Start(programs[name], {}))
    monkeypatch.setattr(
        control,
        "healthy",
        lambda stack, name, service: service.alive and "ready" in stack.log(name).read_text(),
    )
    return programs


def marks(stack: Stack) -> dict[str, str]:
    return {name: service.mark for name, service in stack.services.items()}


def kill(service: Service) -> None:
    os.kill(service.pid, signal.SIGKILL)
    while service.alive:
        time.sleep(0.01)


def test_up_and_down(stack: Stack, programs: dict[str, tuple[str, ...]]) -> None:
    said: list[str] = []
    assert up(stack, 1, said.append)
    assert states(stack) == dict.fromkeys(SERVICES, "healthy")
    begun = [line for line in said if line.startswith("starting")]
    assert begun == [f"starting {name}" for name in (PREFECT, MLFLOW, RAY, WORKER)]
    before = stack.services
    assert not up(stack, 1, said.append), "all are up already"
    assert stack.services == before
    for service in before.values():  # each leads a session, which no terminal ends
        assert os.getsid(service.pid) == service.pid != os.getsid(0)
    assert down(stack, said.append)
    assert not stack.services and not any(marked(s.mark) for s in before.values())
    assert not down(stack, said.append)
    assert not (stack.folder / "env.sh").exists()


def test_what_has_ended_is_started_again_and_the_worker_told(
    stack: Stack, programs: dict[str, tuple[str, ...]]
) -> None:
    up(stack, 1, print)
    before = stack.services
    kill(before[MLFLOW])
    assert states(stack) == dict.fromkeys(SERVICES, "healthy") | {MLFLOW: "ended"}
    assert up(stack, 1, print)
    kept = {name for name in SERVICES if stack.services[name] == before[name]}
    assert kept == {PREFECT, RAY}


def test_if_one_fails_the_others_end(stack: Stack, programs: dict[str, tuple[str, ...]]) -> None:
    programs[RAY] = ("-c", "import sys; sys.exit('no room')")
    started: list[str] = []
    with pytest.raises(UserError, match=r"ray did not start; it said why in .*/stack/ray\.log"):
        up(stack, 1, lambda line: started.extend(marks(stack).values()))
    assert not stack.services and started and not any(map(marked, started))
    assert "no room" in stack.log(RAY).read_text()


def test_services_that_ran_before_stay_if_another_fails(
    stack: Stack, programs: dict[str, tuple[str, ...]]
) -> None:
    up(stack, 1, print)
    before = stack.services
    kill(before[MLFLOW])
    programs[MLFLOW] = ("-c", "import sys; sys.exit('no room')")
    with pytest.raises(UserError, match="mlflow did not start"):
        up(stack, 1, print)
    assert {name for name, service in stack.services.items() if service.alive} == {PREFECT, RAY}


def test_two_commands_do_not_mix(stack: Stack) -> None:
    stack.make()
    with locked_now(stack.folder / ".lock"), pytest.raises(UserError, match="is at work"):
        up(stack, 1, print)


def test_a_taken_port_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = free_ports(port, 0, 0)
        assert port not in found and len(set(found)) == 3
    assert free_ports(port)[0] == port


def test_secrets_are_on_no_command_line_and_all_listen_on_loopback(stack: Stack) -> None:
    stack.make()
    stack.keep(
        {name: Service(1, "m", "", "http://127.0.0.1:1", 1) for name in (PREFECT, MLFLOW, RAY)}
    )
    starts = {name: start_of(stack, name, 3) for name in SERVICES}
    try:
        secrets = {stack.password, stack.ray_token, stack.secret("mlflow_key")}
        for name, start in starts.items():
            line = " ".join(start.arguments)
            assert not [secret for secret in secrets if secret in line]
            assert name == WORKER or services.HOST in line
        assert {stack.password, stack.ray_token} <= {
            value.removeprefix("admin:") for value in starts[WORKER].environment.values()
        }
    finally:
        Path(starts[RAY].temporary).rmdir()


def test_the_environment_of_other_servers_is_left_out(
    stack: Stack, programs: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("MINE", "stays")
    print_it = (
        "import os; print(os.environ.get('PREFECT_API_URL'), os.environ['MINE'], flush=True);"
    )
    programs[PREFECT] = ("-c", print_it + SLEEPS[1])
    up(stack, 1, print)
    assert stack.log(PREFECT).read_text() == "None stays\nready\n"


def test_help_comes_without_torch() -> None:
    program = (
        "import sys; from pipelines.stack import control, discovery; "
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules or 'mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_down_waits_for_the_end_of_a_training(
    tmp_path: Path, stack: Stack, programs: dict[str, tuple[str, ...]]
) -> None:
    run = tmp_path / "train" / "demo-20260131-120000"
    run.mkdir(parents=True)
    assert main(["up", "--workspace", str(tmp_path)]) == 0
    with locked_now(run / ".lock"):
        assert main(["down", "--workspace", str(tmp_path)]) == 2
        assert states(stack) == dict.fromkeys(SERVICES, "healthy")
        assert main(["down", "--workspace", str(tmp_path), "--force"]) == 0
    assert main(["status", "--workspace", str(tmp_path)]) == 3


def test_cpus_of_a_running_ray_are_not_changed_silently(
    tmp_path: Path,
    stack: Stack,
    programs: dict[str, tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["up", "--workspace", str(tmp_path), "--cpus", "1"]) == 0
    assert main(["up", "--workspace", str(tmp_path)]) == 0
    assert main(["up", "--workspace", str(tmp_path), "--cpus", "2"]) == 2
    assert "--cpus 2: Ray is up" in capsys.readouterr().err
    assert main(["status", "--workspace", str(tmp_path)]) == 0
    programs[MLFLOW] = ("-c", "")
    kill(stack.services[MLFLOW])
    assert main(["status", "--workspace", str(tmp_path)]) == 1


def test_down_leaves_an_empty_folder_empty(tmp_path: Path) -> None:
    assert main(["down", "--workspace", str(tmp_path / "runs")]) == 0
    assert not list(tmp_path.iterdir())
