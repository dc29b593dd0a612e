"""Training as a Ray job on a real cluster head: from the shell, through the SDK, and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from pipelines.compute import cluster, jobs, training
from tests.training import tiny_config

pytestmark = [
    pytest.mark.slow,
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[str]:
    """TCP ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The dashboard's address of a cluster of one node, on loopback, with token authentication."""
    port, board, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "4"),
            *("--port", port, "--dashboard-host", "127.0.0.1", "--dashboard-port", board),
            *("--dashboard-agent-listen-port", agent, "--ray-client-server-port", client),
            *("--temp-dir", folder),
        ],
        env=os.environ | cluster.environment(local=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{board}"
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(board))) == 0:
                break
        assert head.poll() is None and time.monotonic() < deadline, "no dashboard"
        time.sleep(0.5)
    yield address
    os.killpg(head.pid, signal.SIGKILL)  # its own session, so no other Ray's processes
    head.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


def submit(address: str, name: str, recipe: Path) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, as the README shows it; waits for the end of the job."""
    return subprocess.run(
        [
            *(RAY, "job", "submit", "--address", address, "--submission-id", name, "--"),
            *(sys.executable, "-m", "pipelines.cli.main", "train", str(recipe)),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | cluster.QUIET,
        check=False,
    )


def test_submitted_from_the_shell(dashboard: str, tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace", cluster__workers=2)
    shard(config.data, config.workspace)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipes.dump(config), encoding="utf-8")
    done = submit(dashboard, "tiny-from-shell", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    (run_dir,) = run_folder.folder(config).iterdir()
    assert run_folder.finished(run_folder.read_events(run_dir))
    # the id is given once: asking twice does not train twice
    again = submit(dashboard, "tiny-from-shell", recipe)
    assert again.returncode != 0 and "already exists" in again.stdout + again.stderr
    assert len(list(run_folder.folder(config).iterdir())) == 1


def test_submitted_through_the_sdk_joined_and_stopped(
    dashboard: str, tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        tiny_source,
        tmp_path / "workspace",
        cluster__workers=2,
        cluster__jobs=dashboard,
        train__total_kimg=1000,
        train__checkpoint_kimg=0.2,
    )
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    flow_run = "0123abcd-0000-0000-0000-000000000000"
    submission = jobs.submission_id(run_dir.name, flow_run)
    assert submission == jobs.submission_id(run_dir.name, flow_run)
    ended: list[object] = []

    def train() -> None:
        try:
            ended.append(jobs.run(config, shards, run_dir, submission))
        except RuntimeError as error:
            ended.append(error)

    # Two that ask for the same attempt share one job
    waiting = [threading.Thread(target=train) for _ in range(2)]
    waiting[0].start()
    while not list_checkpoints(run_dir):
        assert waiting[0].is_alive(), ended
        time.sleep(0.2)
    waiting[1].start()
    client = jobs.connect(dashboard)
    assert [j.submission_id for j in client.list_jobs()].count(submission) == 1

    # The hook of a cancelled flow run ends it, and it alone
    assert jobs.stop(dashboard, "ffffffff-0000-0000-0000-000000000000") == []
    assert jobs.stop(dashboard, flow_run) == [submission]
    for thread in waiting:
        thread.join(60)
    assert client.get_job_status(submission).value == "STOPPED"
    assert len(ended) == 2 and all("ended as STOPPED" in str(error) for error in ended)


def test_a_refusal_inside_the_job_reaches_the_one_who_submitted(
    dashboard: str, tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        tiny_source, tmp_path / "workspace", cluster__workers=99, cluster__jobs=dashboard
    )
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    with pytest.raises(UserError, match="the cluster has 4 CPUs and 99 are needed"):
        jobs.run(config, shards, run_dir, "tiny-too-big")
    assert (run_dir / training.REFUSED).exists()
