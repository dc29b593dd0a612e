"""Real Ray: sharding and training on workers, restarts, refusals, stopping, the ports it opens."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard as shard_here
from gan_train.errors import UserError
from gan_train.files.atomic import read_json
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.training.schedule import check
from pipelines.compute import cluster, jobs, sharding, training
from pipelines.flows import driver
from pipelines.flows.time_left import Forecast
from tests.training import assert_same_bits, tiny_config, tiny_images, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


def prepared(source: Path, workspace: Path, **changes: object) -> tuple[Config, Path, Path]:
    """A configuration for two workers, its shards, and the folder of a new run."""
    config = tiny_config(source, workspace, cluster__workers=2, **changes)
    shards = shard_here(config.data, config.workspace)
    return config, shards, run_folder.new(config, shards)


Quiet = tuple[Config, Path, Path, training.Outcome]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """A run that two workers trained to its end, undisturbed: its configuration, its shards, its
    folder, and what Ray says of it."""
    folder = tmp_path_factory.mktemp("quiet")
    source = tiny_images(folder / "source")
    config, shards, run_dir = prepared(source, folder / "w", train__checkpoint_kimg=0.05)
    return config, shards, run_dir, training.fit(config, shards, run_dir)


def descendants(ancestor: int) -> dict[int, str]:
    """Command lines of all processes that a process has started, by pid."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: commands[pid] for pid in found - {ancestor}}


def addresses_listened_on(pids: set[int]) -> set[str]:
    """Local addresses of the TCP sockets on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                words = [fields[1].partition(":")[0][at : at + 8] for at in range(0, 32, 8)]
                raw = b"".join(struct.pack("=I", int(word, 16)) for word in words if word)
                found.add(socket.inet_ntop(family, raw))
    return found


HOLD = """
import sys
from gan_train.config import ClusterConfig
from pipelines.compute.cluster import connected
with connected(ClusterConfig()):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_ray_listens_on_loopback_alone() -> None:
    """By default GCS, raylet and agents listen on all interfaces."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "up\n"
        started = descendants(holder.pid)
        assert any("gcs_server" in command for command in started.values())
        listening = addresses_listened_on(set(started))
        holder.communicate("")
    assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_shards_are_the_same_bytes_as_those_of_a_single_process(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path / "a", data__shard_images=5)
    fractions: list[float] = []
    spread = sharding.shard(config, fractions.append)
    alone = shard_here(config.data, tmp_path / "b")
    tars = sorted(path.name for path in alone.glob("*.tar"))
    assert len(tars) == 5
    for name in [*tars, "index.json"]:
        assert (spread.directory / name).read_bytes() == (alone / name).read_bytes()
    assert fractions[-1] == 1.0 and not spread.skipped

    # Again: verified and skipped; a damaged shard is written anew
    assert sharding.shard(config).skipped
    victim = spread.directory / tars[2]
    data = bytearray(victim.read_bytes())
    data[700] ^= 1
    victim.write_bytes(data)
    assert not sharding.shard(config).skipped
    assert victim.read_bytes() == (alone / tars[2]).read_bytes()


def test_a_users_mistake_in_a_task_is_told_as_such(tiny_source: Path, tmp_path: Path) -> None:
    (tiny_source / "red" / "9.png").write_bytes(b"not a picture")
    config = tiny_config(tiny_source, tmp_path, data__max_bad_fraction=0.0)
    with pytest.raises(UserError, match=r"max_bad_fraction"):
        sharding.shard(config)


def test_ray_starts_no_process_that_has_nothing_to_do(quiet: Quiet) -> None:
    """Ray's and Ray Train's own extras take up to two seconds each, at the start of every
    training."""
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray._private.worker import global_worker

    node = global_worker.node
    assert quiet and node is not None
    assert node.all_processes.keys() == {"gcs_server", "raylet"}
    taken = (DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, -1)
    assert node.dashboard_agent_listen_port not in taken, "several may run at once"
    logs = Path(node.get_logs_dir_path())
    said = "".join(path.read_text() for path in logs.glob("worker-*.out"))
    named = re.findall(r":actor_name:(\w+)", said)
    assert set(named) == {"SynchronizationActor", "RayTrainWorker"}
    # nor does the agent look for the dashboard that there is not, once a second
    assert "dashboard http address" not in (logs / "dashboard_agent.log").read_text()


def test_ray_is_told_of_checkpoints(quiet: Quiet) -> None:
    _, _, run_dir, outcome = quiet
    assert run_folder.finished(run_folder.read_events(run_dir))
    assert outcome.checkpoint == list_checkpoints(run_dir)[0]
    assert outcome.metrics["nimg"] == 192


def test_a_changed_configuration_is_refused_at_once(
    quiet: Quiet, capfd: pytest.CaptureFixture[str]
) -> None:
    """A restart would only meet it again: the workers are not restarted, the message is ours."""
    from ray._private.worker import global_worker

    config, shards, run_dir, _ = quiet
    log = run_dir / training.WORKER_LOG
    before = log.read_text(encoding="utf-8").splitlines()
    changed = recipes.change(config, {"seed": 7})
    with pytest.raises(UserError, match="seed: 0 -> 7"):
        training.fit(changed, shards, run_dir)
    assert (run_dir / training.REFUSED).exists()
    more = log.read_text(encoding="utf-8").splitlines()[len(before) :]
    assert 1 <= len(more) <= 2 and all("process" in m for m in more), "each worker began once"
    # Ray Train tells of it with a traceback, which is for its log
    assert global_worker.node is not None
    said = Path(global_worker.node.get_logs_dir_path(), "train-controller.log").read_text()
    assert "Traceback" in said and "seed: 0 -> 7" in said
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_stopped_run_saves_and_goes_on_to_the_same_end(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LOOK_S", 0.1)  # the whole schedule takes seconds
    config, shards, quiet = prepared(tiny_source, tmp_path / "w", train__total_kimg=1.2)
    training.fit(config, shards, quiet)
    stopped = run_folder.new(config, shards)
    told: list[float] = []
    attention = driver.Attention(
        cancelled=lambda: bool(list_checkpoints(stopped)), every_s=0.0, on_progress=told.append
    )

    def train() -> training.Outcome:
        return training.fit(config, shards, stopped)

    def forecast() -> Forecast:
        stages = check(config, Index.load(shards).image_shape, 2)
        return Forecast(stages, 1200, [1200])

    ended = driver.attend(train, stopped, forecast(), attention)
    assert not ended.finished and 0 < ended.nimg < 1200
    assert int(list_checkpoints(stopped)[0].name) == ended.nimg, "the last image seen is saved"
    assert told and told == sorted(told)
    ended = driver.attend(train, stopped, forecast(), driver.Attention())
    assert ended.finished and not (stopped / training.STOP).exists()
    assert_same_bits(weights(quiet), weights(stopped))


def test_a_checkpoint_is_scored_alike_by_training_and_by_evaluate(quiet: Quiet) -> None:
    config, shards, run_dir, _ = quiet
    newest = list_checkpoints(run_dir)[0]
    assert training.evaluate(config, shards, newest) == read_json(newest / "scores.json")
    assert not list((config.workspace / "evaluate").iterdir())


def test_threads_are_shared_out(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__workers=2)
    assert cluster.threads_per_worker(config, cores=16) == 8
    assert cluster.threads_per_worker(config, cores=1) == 1
    chosen = tiny_config(tiny_source, tmp_path, cluster__workers=2, train__threads=3)
    assert cluster.threads_per_worker(chosen, cores=16) == 3


def test_gpus_that_are_not_there_are_refused(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__gpu="yes", cluster__workers=999)
    with pytest.raises(UserError, match=r"cluster\.gpu=yes: 999 workers need a GPU each"):
        cluster.gpus_wanted(config.cluster)


def test_a_cluster_that_does_not_answer_is_named() -> None:
    config = recipes.load("demo", ["cluster.jobs=http://127.0.0.1:9"])
    with pytest.raises(UserError, match=r"cluster\.jobs=http://127\.0\.0\.1:9: no Ray dashboard"):
        jobs.connect(str(config.cluster.jobs))
