"""The command that drives a training is ended, or Ray under it: what was trained is kept, the exit
status says why, and the next command goes on."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import last_event, read_events
from pipelines.compute.training import WORKER_LOG
from pipelines.stack.processes import marked
from pipelines.stack.record import RAY, Stack
from tests.training import tiny_config, tiny_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BOUND_S = 240.0
"""A machine with other work takes several times as long as an idle one."""
ABORTS = ("Fatal Python error", "terminate called", "*** SIGABRT", "Traceback")


class Runs:
    """Commands that train one run, each of which goes on where the one before was ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = tiny_config(
            tiny_images(folder / "source"),
            folder / "workspace",
            train__total_kimg=1000,
            train__checkpoint_kimg=0.4,
            train__tick_kimg=0.08,
            train__sample_kimg=1000,
        )
        (folder / "recipe.yaml").write_text(recipes.dump(self.config))
        shard(self.config.data, self.config.workspace)

    @property
    def run_dir(self) -> Path:
        """The folder of the only run."""
        (run_dir,) = run_folder.runs_of(self.config)
        return run_dir


class Command:
    """`gan-train train` in a terminal of its own, which ends with the block."""

    def __init__(self, runs: Runs) -> None:
        started = run_folder.runs_of(runs.config)
        self._runs, self._said = runs, b""
        self._terminal, inside = os.openpty()
        os.set_blocking(self._terminal, False)

        def take_terminal() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # tests may run where they are ignored
            fcntl.ioctl(inside, termios.TIOCSCTTY, 0)

        command = [sys.executable, "-m", "pipelines.cli.main", "train", runs.folder / "recipe.yaml"]
        self.process = subprocess.Popen(
            [*command, *(["--resume", started[0].name] if started else [])],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(inside)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.others()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """What the command has written to its terminal."""
        try:
            while more := os.read(self._terminal, 1 << 16):
                self._said += more
        except OSError:  # nothing more for now, or closed
            pass
        return self._said.decode(errors="replace").replace("\r\n", "\n")

    def others(self) -> dict[int, str]:
        """The names of the processes that the command has started and that live, by number."""
        listed = subprocess.run(
            ["ps", "-ww", "--sid", str(self.process.pid), "-o", "pid=,stat=,args="],
            capture_output=True,
            text=True,
            check=False,
        )
        found = {}
        for line in listed.stdout.splitlines():
            pid, state, name = line.split(None, 2)
            if "Z" not in state and int(pid) != self.process.pid:
                found[int(pid)] = name.split()[0].rpartition("/")[2]
        return found

    def other(self, name: str) -> list[int]:
        """The processes of this name among them."""
        return [pid for pid, called in self.others().items() if called == name]

    def wait(self, ready: Callable[[], object]) -> None:
        """Return when `ready`, while the command runs."""
        deadline = time.monotonic() + BOUND_S
        while not ready():
            said = self.said()  # a terminal that nobody reads would fill up
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def train(self) -> None:
        """Return once the workers have saved a checkpoint and trained on."""
        kept = set(list_checkpoints(self._runs.run_dir)) if self._started() else set()
        self.wait(lambda: self._started() and set(list_checkpoints(self._runs.run_dir)) - kept)
        reached = run_folder.reached(read_events(self._runs.run_dir))
        self.wait(lambda: run_folder.reached(read_events(self._runs.run_dir)) > reached)

    def _started(self) -> bool:
        return bool(run_folder.runs_of(self._runs.config))

    def close_terminal(self) -> None:
        """As a window does that is closed: all that runs in it gets SIGHUP."""
        os.close(self._terminal)

    def ended(self, alone: bool = False) -> int:
        """The exit status, once the command has ended, and, unless `alone`, all that it has
        started."""
        deadline = time.monotonic() + BOUND_S
        while self.process.poll() is None or (not alone and self.others()):
            assert time.monotonic() < deadline, (self.said(), self.others())
            self.said()
            time.sleep(0.05)
        said = self.said()
        assert not [sign for sign in ABORTS if sign in said], said
        return self.process.returncode


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def command(runs: Runs) -> Iterator[Command]:
    with Command(runs) as command:
        yield command


def all_is_saved(run_dir: Path) -> bool:
    """Whether the workers have ended in good order, with a checkpoint of all that they trained."""
    end = last_event(run_dir)
    assert end is not None
    newest = list_checkpoints(run_dir)[0]
    return (end["kind"], end["status"], end["nimg"]) == ("end", "stopped", int(newest.name))


def resumed(run_dir: Path) -> str:
    """The checkpoint from which the workers have gone on last; empty before that."""
    found = re.findall(r"resumed from (\S+) ", (run_dir / WORKER_LOG).read_text())
    return found[-1] if found else ""


@pytest.mark.fault(
    "a terminal closed (SIGHUP) in mid-run",
    "a checkpoint of all that was trained, status 129; `--resume` goes on",
)
def test_a_closed_terminal(
    runs: Runs, command: Command, record_property: Callable[[str, object], None]
) -> None:
    command.train()
    command.close_terminal()
    assert command.ended() == 129
    assert all_is_saved(runs.run_dir)
    record_property("lost", "nothing")


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(
            os.kill,
            marks=pytest.mark.fault(
                "SIGTERM of the driver in mid-run",
                "a checkpoint of all that was trained, status 143; `--resume` goes on",
            ),
        ),
        pytest.param(
            os.killpg,
            marks=pytest.mark.fault(
                "SIGTERM of the driver's process group, as `timeout` sends it",
                "a checkpoint of all that was trained, status 143; `--resume` goes on",
            ),
        ),
    ],
)
def test_sigterm(
    runs: Runs,
    command: Command,
    send: Callable[[int, int], None],
    record_property: Callable[[str, object], None],
) -> None:
    command.train()
    send(command.process.pid, signal.SIGTERM)
    assert command.ended() == 143, command.said()
    assert all_is_saved(runs.run_dir)
    assert f"--resume {runs.run_dir.name}" in command.said()
    record_property("lost", "nothing")


@pytest.mark.fault(
    "SIGTERM, SIGHUP, or SIGINT twice, while Ray starts", "ends at once, with nothing left behind"
)
@pytest.mark.parametrize(
    ("signals", "statuses"),
    [
        ((signal.SIGTERM,), {143}),
        ((signal.SIGHUP,), {129}),
        ((signal.SIGINT, signal.SIGINT), {130, -signal.SIGINT}),
    ],
)
def test_signals_while_ray_starts(
    command: Command, signals: tuple[signal.Signals, ...], statuses: set[int]
) -> None:
    command.wait(lambda: command.other("gcs_server"))
    for number in signals:
        command.process.send_signal(number)
        time.sleep(0.3)
    assert command.ended() in statuses, command.said()


@pytest.mark.fault(
    "SIGTERM at any moment of the start", "ends, with status 143, or as a process does without us"
)
def test_a_signal_at_any_moment_of_the_start(runs: Runs) -> None:
    """Most of these seconds pass in imports, which may swallow what a signal raises."""
    for tenths in range(3, 48, 3):
        with Command(runs) as command:
            time.sleep(tenths / 10)
            command.process.send_signal(signal.SIGTERM)
            assert command.ended() in {143, -signal.SIGTERM}, command.said()


@pytest.mark.fault(
    "a second SIGTERM of the driver in mid-run",
    "ends at once, and all of Ray within 240 s; `--resume` goes on from the last checkpoint",
)
def test_a_second_signal(runs: Runs, command: Command) -> None:
    command.train()
    command.process.send_signal(signal.SIGTERM)
    command.wait(lambda: "stopping: the workers save" in command.said())
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(10) == -signal.SIGTERM
    assert command.ended() == -signal.SIGTERM
    newest = list_checkpoints(runs.run_dir)[0]
    with Command(runs) as again:
        again.wait(lambda: resumed(runs.run_dir) == str(newest))


@pytest.mark.fault(
    "SIGKILL of the driver", "Ray ends with it; `--resume` goes on from the last checkpoint"
)
def test_a_killed_driver(
    runs: Runs, command: Command, record_property: Callable[[str, object], None]
) -> None:
    command.train()
    killed = time.monotonic()
    command.process.kill()
    assert command.ended(alone=True) == -signal.SIGKILL
    newest = list_checkpoints(runs.run_dir)[0]
    with Command(runs) as again:  # at once, while the last processes of Ray still end
        again.wait(lambda: resumed(runs.run_dir) >= str(newest))
        record_property("recovered_s", time.monotonic() - killed)
        command.ended()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "raylet",
            marks=pytest.mark.fault(
                "SIGKILL of the raylet of the only machine",
                "one message with cause and remedy; `--resume` goes on from the last checkpoint",
            ),
        ),
        pytest.param(
            "gcs_server",
            marks=pytest.mark.fault(
                "SIGKILL of Ray's GCS on the only machine",
                "one message with cause and remedy; Ray ends within 240 s; `--resume` goes on from "
                "the last checkpoint",
            ),
        ),
    ],
)
def test_a_killed_process_of_ray(
    runs: Runs, command: Command, name: str, record_property: Callable[[str, object], None]
) -> None:
    command.train()
    killed = time.monotonic()
    os.kill(command.other(name)[0], signal.SIGKILL)
    assert command.ended(alone=True) == 2
    newest = list_checkpoints(runs.run_dir)[0]
    (message,) = (line for line in command.said().splitlines() if "Ray has ended" in line)
    assert f"--resume {runs.run_dir.name}" in message
    assert f"({name})" not in command.said(), "Ray's log stays in its files"
    logs = re.search(r"log is in (\S+);", message)
    assert logs is not None and (Path(logs[1]) / f"{name}.out").exists()
    with Command(runs) as again:
        again.wait(lambda: resumed(runs.run_dir) >= str(newest))
        record_property("recovered_s", time.monotonic() - killed)
        command.ended()


@pytest.mark.fault(
    "SIGKILL of the raylet of `gan-train up`",
    "one message with cause and remedy; `gan-train up` starts Ray again, and `--resume` goes on",
)
def test_the_ray_of_a_stack_is_killed(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    runs = Runs(tmp_path)
    stack = Stack.of(runs.config.workspace)
    cli = [sys.executable, "-m", "pipelines.cli.main"]
    place = ["--workspace", str(runs.config.workspace)]
    subprocess.run([*cli, "up", "--cpus", "2", *place], check=True)
    try:
        with Command(runs) as command:
            command.train()
            assert not command.other("raylet"), "it uses the stack's"
            (raylet,) = (
                pid
                for pid in marked(stack.services[RAY].mark)
                if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"
            )
            os.kill(raylet, signal.SIGKILL)
            killed = time.monotonic()
            assert command.ended() == 2
            (message,) = (line for line in command.said().splitlines() if "Ray has ended" in line)
            assert f"--resume {runs.run_dir.name}" in message
        newest = list_checkpoints(runs.run_dir)[0]
        subprocess.run([*cli, "up", "--cpus", "2", *place], check=True)
        with Command(runs) as again:
            again.wait(lambda: resumed(runs.run_dir) >= str(newest))
            record_property("recovered_s", time.monotonic() - killed)
    finally:
        subprocess.run([*cli, "down", "--force", *place], check=True)
