"""Shared fixtures. The environment is set here, before any test imports Ray, Prefect or MLflow."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Quiet, offline and safe: no telemetry, no pickled models, quick polls of Ray Train's controller.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_AUTH_MODE="token",  # Ray keeps what it reads when it is first imported
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DO_NOT_TRACK="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    GIT_PYTHON_REFRESH="quiet",
    OMP_NUM_THREADS="1",
)

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from tests import browser, bucket, nodes, postgres, small_disk
from tests.faults import table
from tests.training import tiny_images

ROOT = Path(__file__).parents[1]
ENGINES_OF_FAULTS = "tests/faults/engines/"
ENGINES = (
    "tests/benchmarks/test_bench.py",
    ENGINES_OF_FAULTS,
    *(f"tests/pipelines/{room}/" for room in ("compute", "stack", "flows", "comparison")),
)
"""Where Ray and Prefect are started, which take all cores: one such test at a time."""
ENGINES_LAST = ("tests/pipelines/comparison/", "tests/pipelines/stack/")
"""Those of them that come last, a file each to whichever process is free, beside the others. They
wait for their engines more than they compute."""
SINGLE = ("tests/distributed/", "tests/faults/")
"""Where no test shares a fixture with the others of its file."""


def for_gpu(config: pytest.Config) -> bool:
    """`pytest -m gpu`, or `-m "gpu and ..."`."""
    return str(config.option.markexpr).startswith("gpu")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # a job in the background of a shell ignores it, and so would all that the tests start
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not for_gpu(config):  # else tests of the CPU's figures and bits would fail
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def lacking() -> list[str]:
    """The marks of tests for which this machine lacks the program."""
    found = {
        "postgres": postgres.programs(),
        "browser": browser.program(),
        "promtool": shutil.which("promtool"),
        "kubectl": shutil.which("kubectl"),
        "small_disk": small_disk.allowed(),
    }
    return [name for name, there in found.items() if not there]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests for a GPU run where they are asked for, those of a program where it is installed.
    Faults in engines are `long`: each waits until all goes on. `ENGINES_LAST` come last."""
    for item in items:
        of_engines = item.nodeid.startswith(ENGINES) and item.get_closest_marker("slow")
        if of_engines and (table.mark(item) or item.nodeid.startswith(ENGINES_OF_FAULTS)):
            item.add_marker("long")
    absent = [*([] if for_gpu(config) else ["gpu"]), *lacking()]
    left_out = [item for item in items if any(map(item.get_closest_marker, absent))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.nodeid.startswith(ENGINES_LAST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A row of the table of faults travels with the report, also out of another process."""
    if (fault := table.mark(item)) is not None:
        item.user_properties.append(("fault", fault))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind)]
    table.write(ROOT / "build" / "faults.md", reports)


def pytest_report_header() -> list[str]:
    """Say it where tests are left out for want of a program, and what joins the nodes of others."""
    absent = [f"tests marked {name} are left out: this machine lacks it" for name in lacking()]
    return [*absent, f"network of several nodes: {nodes.network()}"]


class Scheduling(LoadScopeScheduling):
    """Which tests stay in one process, in their order, where several processes run them: those of
    the engines, and elsewhere those of one file, for they share its fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(ENGINES) and not nodeid.startswith(ENGINES_LAST):
            return "engines"
        return nodeid if nodeid.startswith(SINGLE) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """What a test's code sets, such as Prefect's home in a folder of that test, ends with it."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def engines_are_not_measured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray and Prefect start dozens of Python processes, which take half as long again where
    coverage traces them. What they run of this project, other tests run in a measured process."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.nodeid.startswith(ENGINES):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server on loopback."""
    with bucket.s3_server() as port:
        yield port


@pytest.fixture
def in_bucket(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty folder in a bucket; this process finds server and credentials in its
    environment, and keeps its copies in a folder of the test."""
    name = f"test-{os.urandom(6).hex()}"
    bucket.make_bucket(s3_port, name)
    for key, value in bucket.environment(s3_port).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("GAN_TRAIN_CACHE", str(tmp_path / "copies"))
    return f"s3://{name}/team"


@pytest.fixture(scope="session")
def glyphs() -> Path:
    """The sample data: a zip of class folders A to Z with grey PNGs of 32x32."""
    return ROOT / "sample_data" / "glyphs.zip"


@pytest.fixture
def tiny_source(tmp_path: Path) -> Path:
    """A folder of three class folders, eight RGB PNGs of 16x16 in each, all different."""
    return tiny_images(tmp_path / "source")
