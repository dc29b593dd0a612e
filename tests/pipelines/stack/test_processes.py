"""A service's processes are told from all others by their mark, whatever their number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from pipelines.stack import processes

SLEEPS = "import time; print(0, flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
WITH_A_CHILD = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""

Start = Callable[[str, str], tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program with a mark; gives the process, and the number that it prints."""
    started = []

    def run(program: str, mark: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {processes.MARK: mark},
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_mark_is_seen_until_its_process_ends(start: Start) -> None:
    process, _ = start(SLEEPS, "a")
    assert processes.is_marked(process.pid, "a") and processes.marked("a") == [process.pid]
    assert not processes.is_marked(process.pid, "b") and not processes.is_marked(process.pid, "")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert not processes.is_marked(process.pid, "a")
    process.wait()
    assert not processes.is_marked(process.pid, "a")


def test_a_mark_is_seen_from_the_start() -> None:
    """The kernel shows an empty environment while a process takes up its program, which one in
    fifteen was seen to do here."""
    for _ in range(200):
        with subprocess.Popen(["sleep", "600"], env=os.environ | {processes.MARK: "a"}) as process:
            seen = processes.is_marked(process.pid, "a")
            process.kill()
        assert seen


def test_an_empty_environment_is_not_waited_for() -> None:
    with subprocess.Popen(["/bin/sleep", "600"], env={}) as process:
        time.sleep(0.1)  # it has taken up its program
        found = processes.environment(process.pid)
        process.kill()
    assert found == b""


def test_another_process_that_has_got_the_number_lives_on(start: Start) -> None:
    other, _ = start(SLEEPS, "other")
    processes.send(other.pid, "recorded", signal.SIGKILL)
    processes.end(other.pid, "recorded", 0.1)
    time.sleep(0.2)
    assert other.poll() is None


def test_a_service_ends_with_its_stubborn_children(start: Start) -> None:
    service, child = start(WITH_A_CHILD, "service")
    processes.end(service.pid, "service", 0.2)
    assert service.wait(10) == -signal.SIGTERM
    assert not processes.is_marked(child, "service")


def test_children_are_found_after_the_death_of_their_parent(start: Start) -> None:
    service, child = start(WITH_A_CHILD, "service")
    service.kill()
    service.wait()
    assert processes.marked("service") == [child]
    processes.end(service.pid, "service", 0.2)
    assert not processes.marked("service")
