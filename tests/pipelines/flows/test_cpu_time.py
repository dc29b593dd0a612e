"""Processor time by role, from `/proc`: where there is none, there is nothing to test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.flows.cpu_time import DRIVER, Samples, usage
from pipelines.flows.overhead import used_by_engines

BUSY = """
import subprocess, sys, time
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
print("done", flush=True)
sys.stdin.read()
"""


def child(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_descendants_count_under_their_role() -> None:
    if not Path("/proc/self/stat").exists():
        assert usage() == {}
        return
    before = usage()
    assert "workers" not in before
    # a worker's own child counts as a worker, and a child without a role as the driver
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with (
        child(sys.executable, "-c", parent, BUSY, "ray::RayTrainWorker") as worker,
        child(sys.executable, "-c", BUSY) as helper,
    ):
        assert worker.stdout and helper.stdout
        assert [worker.stdout.readline(), helper.stdout.readline()] == ["done\n", "done\n"]
        during = usage()
    assert during["workers"] >= 0.25
    assert during[DRIVER] - before[DRIVER] >= 0.25


def test_shares_are_between_two_samples() -> None:
    samples = Samples()
    assert samples.shares(0, 10_000) == {}
    samples.taken = [
        (0, {"Ray": 5.0}),
        (1000, {"Ray": 6.0}),
        (2000, {"Ray": 6.5, "driver": 0.2}),
        (3000, {"Ray": 7.0, "driver": 0.4}),
        (4000, {"Ray": 99.0, "driver": 9.0}),
    ]
    assert samples.shares(500, 3500) == pytest.approx({"Ray": 0.5, "driver": 0.2})
    assert samples.shares(500, 1500) == {}, "one sample is no span"


def test_the_benchmark_tells_medians_without_the_workers() -> None:
    rounds = [
        {"workers": 1.9, "Ray": 0.02, "driver": 0.01},
        {},  # too short to be known
        {"workers": 1.8, "Ray": 0.04, "driver": 0.01},
        {"workers": 1.8, "Ray": 0.03, "driver": 0.02},
    ]
    (line,) = used_by_engines("2 workers", rounds)
    assert line == ("engines, 2 workers                    4.0% of a core   Ray 3.0%, driver 1.0%")
    assert list(used_by_engines("2 workers", [{}, {}])) == []
