"""Ray jobs on a real cluster head: trainings from the shell and through the SDK, and whole runs."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from pipelines.cli.main import main
from pipelines.compute import cluster, jobs, submission, training
from pipelines.registry import provenance
from tests.ray_head import RAY, head
from tests.training import tiny_config

pytestmark = [
    pytest.mark.slow,
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The dashboard's address of a cluster of one node."""
    with head() as address:
        yield address


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
    submission = jobs.submission_of(dashboard, run_dir)
    assert submission == jobs.submission_of(dashboard, run_dir)
    ended: list[object] = []

    def train() -> None:
        try:
            ended.append(jobs.run(config, shards, run_dir, submission, flow_run))
        except RuntimeError as error:
            ended.append(error)

    # Two that ask for the same attempt share one job
    waiting = [threading.Thread(target=train) for _ in range(2)]
    waiting[0].start()
    while not list_checkpoints(run_dir):
        assert waiting[0].is_alive(), ended
        time.sleep(0.2)
    assert jobs.submission_of(dashboard, run_dir) == submission
    waiting[1].start()
    client = jobs.connect(dashboard)
    assert [j.submission_id for j in client.list_jobs()].count(submission) == 1

    # The hook of a cancelled flow run ends it, and it alone
    assert jobs.stop(dashboard, "ffffffff-0000-0000-0000-000000000000") == []
    assert jobs.stop(dashboard, flow_run) == [submission]
    for thread in waiting:
        thread.join(60)
    assert client.get_job_status(submission).value == "STOPPED"
    assert jobs.submission_of(dashboard, run_dir) != submission  # the next attempt's
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


def test_a_whole_run_is_submitted_once_stopped_and_resumed(
    dashboard: str,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(
        tiny_source,
        tmp_path / "workspace",
        train__total_kimg=1000,
        train__checkpoint_kimg=1000,
        evaluate__metrics=["frechet"],
        evaluate__batch=8,
    )
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipes.dump(config), encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    monkeypatch.setattr(provenance, "source_tags", lambda: {"gan_train.version": "sent"})
    here = ["--address", dashboard]
    submit = ["submit", str(recipe), *here, "--python", sys.executable]

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err

    # Once submitted, it is found again
    status, _, err = call(*submit, "--detach")
    assert status == 0 and "MLFLOW_TRACKING_PASSWORD is not sent" in err
    (job,) = [job for job in submission.jobs(jobs.connect(dashboard)) if job.what == "run"]
    assert f"submitted {job.id}" in err
    status, _, err = call(*submit, "--detach")
    assert status == 0 and f"{job.id} was submitted before" in err
    status, out, _ = call("jobs", *here)
    (line,) = [line for line in out.splitlines() if " run " in line]
    assert line.split()[:3] == [job.id, "tiny", "run"]

    # It saves a checkpoint when it is stopped
    while not (
        training_runs := list(run_folder.folder(config).glob("*/checkpoints/*/scores.json"))
    ):
        assert not submission.find(jobs.connect(dashboard), job.id).ended, call(
            "logs", job.id, *here
        )
        time.sleep(0.5)
    (run_dir,) = {path.parents[2] for path in training_runs}
    status, _, err = call("stop", job.id, *here)
    assert status == 0 and f"--resume {run_dir.name}" in err
    assert submission.find(jobs.connect(dashboard), job.id).status == "STOPPED"
    events = run_folder.read_events(run_dir)
    assert (events[-1]["kind"], events[-1]["status"]) == ("end", "stopped")
    newest = next(iter(list_checkpoints(run_dir)))
    assert newest.name == f"{events[-1]['nimg']:012d}"
    status, _, err = call(*submit)
    assert status == 2 and "is stopped" in err and "--id NAME" in err

    # It goes on as another job, to the end, in the code and with the images that were sent
    end = ["--set", f"train.total_kimg={events[-1]['nimg'] / 1000 + 0.05}"]
    status, out, err = call(*submit, "--resume", run_dir.name, *end)
    assert status == 0, out
    assert "registered  progan-tiny version 1" in out and "is succeeded" in err
    assert run_folder.finished(run_folder.read_events(run_dir))
    resumed = re.findall(r"submitted (\S+)", err)[-1]
    for command, said in ((["attach"], "is succeeded"), (["logs", "-f"], "")):
        status, out, err = call(*command, resumed, *here)
        assert status == 0 and "registered  progan-tiny version 1" in out and said in err
    status, _, err = call("attach", job.id, *here)
    assert status == 130 and "is stopped" in err
    status, _, err = call(*submit, "--resume", run_dir.name, *end)
    assert status == 0 and "is finished" in err
    with sqlite3.connect(config.workspace / "mlflow.db") as database:
        told = database.execute("SELECT value FROM tags WHERE key = 'gan_train.version'")
        assert {value for (value,) in told} == {"sent"}

    # What is secret here is not known there, and what others have started is theirs
    details = jobs.connect(dashboard).list_jobs()
    assert "open-sesame" not in repr(details) + out
    foreign = jobs.connect(dashboard).submit_job(entrypoint="sleep 60")
    status, _, err = call("stop", foreign, *here)
    assert status == 2 and "was not submitted by gan-train" in err
    assert not submission.find(jobs.connect(dashboard), foreign).ended


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_several_runs_share_a_cluster(
    dashboard: str,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two runs train side by side in what they asked for; a third waits until one is stopped."""
    from ray.util.state import list_placement_groups

    client = jobs.connect(dashboard)

    def call(*arguments: str) -> str:
        capsys.readouterr()
        status = main([*arguments, "--address", dashboard])
        out, err = capsys.readouterr()
        assert status == 0, out + err
        return out + err

    def submit(name: str, workers: int, cpus: int) -> Config:
        config = tiny_config(
            tiny_source,
            tmp_path / "workspace",
            name=name,
            cluster__workers=workers,
            cluster__cpus_per_worker=cpus,
            train__total_kimg=1000,
            train__checkpoint_kimg=1000,
            train__tick_kimg=0.08,
            train__sample_kimg=1000,
            evaluate__metrics=["diversity"],
        )
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(recipes.dump(config), encoding="utf-8")
        call("submit", str(recipe), "--python", sys.executable, "--detach", "--id", name)
        return config

    def trained(config: Config) -> int:
        """The number of images that the run has seen."""
        events = [e for run in run_folder.runs_of(config) for e in run_folder.read_events(run)]
        return max((e["nimg"] for e in events if e["kind"] == "metrics"), default=0)

    def wait(ready: Callable[[], object]) -> None:
        while not ready():  # the test's own timeout ends a wait in vain
            for name in ("wide", "pair", "late"):
                job = submission.state(client, name)
                assert job is None or not job.ended or name in stopped, call("logs", name)
            time.sleep(0.5)

    def rooms() -> list[list[float]]:
        """The CPUs of the workers of each training that has its room."""
        groups = list_placement_groups(dashboard, detail=True, raise_on_missing_output=False)
        return sorted(
            [bundle["unit_resources"]["CPU"] for bundle in group.bundles]
            for group in groups
            if group.state == "CREATED"
        )

    stopped: set[str] = set()
    wide = submit("wide", 1, 2)
    wait(lambda: trained(wide))  # it has sharded the images of all
    pair = submit("pair", 2, 1)
    wait(lambda: trained(pair))
    assert rooms() == [[1, 1], [2]]

    late = submit("late", 2, 1)
    line = (
        "waiting for room: needed are 2 x 1 CPU, and 0 of 4 CPUs of the cluster are free; it goes "
        "on by itself once they are"
    )
    before = trained(wide), trained(pair)
    wait(lambda: line in call("logs", "late"))
    assert "late" in call("jobs")
    wait(lambda: trained(wide) > before[0] and trained(pair) > before[1])
    assert not trained(late) and rooms() == [[1, 1], [2]]

    stopped.add("pair")
    said = call("stop", "pair")
    assert "--resume pair-" in said
    wait(lambda: trained(late))
    before = trained(wide), trained(late)
    wait(lambda: trained(wide) > before[0])
    assert rooms() == [[1, 1], [2]]
    for config in (wide, late):
        (run_dir,) = run_folder.runs_of(config)
        assert "resumed from" not in (run_dir / training.WORKER_LOG).read_text(), "undisturbed"
    stopped |= {"late", "wide"}
    for name in ("late", "wide"):
        call("stop", name)
        assert submission.find(client, name).status == "STOPPED"
