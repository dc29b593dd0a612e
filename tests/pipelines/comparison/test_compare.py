"""Comparisons: what is decided beforehand, and whole ones on real Ray, Prefect and MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.states import Cancelling

from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import EventLog
from pipelines.cli.main import STOPPED, main
from pipelines.comparison import contest, flow, gather
from pipelines.comparison.facts import Facts
from pipelines.comparison.plan import Comparison, Training, describe, planned
from pipelines.comparison.scheduled import Contest, compare_again_flow
from pipelines.registry import tracking
from tests.pipelines.comparison.conftest import recipe_like, shard_of, trained

FD = "fd_efficientnet_lite0"


# ---- decided beforehand ------------------------------------------------------------------------


def test_all_recipes_get_the_data_the_protocol_and_the_places_of_one(
    growing: str, styles: str, tmp_path: Path
) -> None:
    first, second = planned([growing, styles], kimg=0.096).configs
    assert (first.data, first.evaluate, first.workspace) == (
        second.data,
        second.evaluate,
        second.workspace,
    )
    assert first.workspace == tmp_path / "workspace" and not first.data.mirror
    assert second.family.name == "stylegan" and second.name == "styles"
    other = planned([growing, styles], data=styles, kimg=0.096).configs
    assert all(config.data.mirror and config.evaluate.images == 8 for config in other)


def test_the_budget_in_images_ends_every_schedule_and_places_the_scores(
    growing: str, styles: str
) -> None:
    configs = planned([growing, styles], kimg=0.096).configs
    assert [config.train.total_kimg for config in configs] == [0.096, 0.096]
    assert [config.train.checkpoint_kimg for config in configs] == [0.016, 0.016]
    configs = planned([growing, styles], minutes=1).configs
    assert [config.train.total_kimg for config in configs] == [None, None]
    assert [config.train.checkpoint_kimg for config in configs] == [0.032, 0.08]
    own = planned([growing], ["train.checkpoint_kimg=0.05"], minutes=1).configs[0]
    assert own.train.checkpoint_kimg == 0.05


def test_path_lengths_are_measured_at_the_end_alone(growing: str) -> None:
    wanted = ["evaluate.metrics=[frechet, path_length]"]
    assert planned([growing], wanted, kimg=1).configs[0].evaluate.metrics == ("frechet",)
    with pytest.raises(UserError, match="give a measure that recipes are ranked by"):
        planned([growing], ["evaluate.metrics=[path_length]"], kimg=1)


@pytest.mark.parametrize(
    ("overrides", "more", "message"),
    [
        (["train.total_kimg=5"], {}, "--kimg or --minutes"),
        (["cluster.jobs=http://head:8265"], {}, "submit it as a whole"),
        (["evaluate.path_lengths=[w_end]"], {}, "between latents z"),
        (["cluster.workers=2"], {"workers": 2}, "--workers says it already"),
        (["family.fade_kimg=1"], {}, "styles: .*fade_kimg"),
        (["data.classes=none"], {}, "growing: .*classes"),
        ([], {"workers": 3}, "growing: .*lanes"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    growing: str, styles: str, overrides: list[str], more: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned([growing, styles], overrides, kimg=1, **more)


def test_two_recipes_of_one_name_are_refused(growing: str) -> None:
    with pytest.raises(UserError, match="two recipes are called growing"):
        planned([growing, growing], kimg=1)


def test_the_same_command_is_the_same_comparison(growing: str, styles: str) -> None:
    both = planned([growing, styles], kimg=1)
    assert both.id == planned([growing, styles], kimg=1, at_once=1, target=4.0).id
    assert both.id.startswith("growing-styles-")
    others = {
        planned([growing, styles], kimg=2).id,
        planned([growing, styles], minutes=1).id,
        planned([growing, styles], ["seed=1"], kimg=1).id,
        planned([growing], kimg=1).id,
    }
    assert len(others | {both.id}) == 5


def test_side_by_side_as_there_is_room(growing: str, styles: str) -> None:
    both = planned([growing, styles], ["cluster.workers=2"], kimg=1)
    assert [both.slots(cpus, 0) for cpus in (1, 2, 3, 4, 100)] == [1, 1, 1, 2, 2]
    assert both.slots(100, 2) == 1, "two GPUs are for one of them"
    assert both.slots(100, 4) == 2
    assert both.slots(100, 1) == 2, "with too few GPUs, all train on CPUs"
    assert both.model_copy(update={"at_once": 1}).slots(100, 0) == 1


def test_dry_run_shows_the_plan_and_starts_nothing(
    growing: str, styles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", growing, styles, "--minutes", "2", "--workers", "2", "--dry-run"]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert "2 recipes, 2 min of training each" in text
    assert "24 of 8 px, grey, 3 classes" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["growing"] == ["progan", "2", "0.192", "kimg", "6", "2.0", "min"]
    assert rows["styles"] == ["stylegan", "2", "0.48", "kimg", "6", "2.0", "min"]
    assert "4 min of training if one follows the other" in text
    assert not (tmp_path / "workspace").exists()


def test_the_time_a_budget_in_images_takes_is_known_from_an_earlier_run(growing: str) -> None:
    comparison = planned([growing], kimg=0.12)
    assert "unknown" in describe(comparison)
    earlier = run_folder.folder(comparison.configs[0]) / "growing-20260101-000000"
    earlier.mkdir(parents=True)
    (earlier / run_folder.CONFIG).touch()
    log = EventLog(earlier)
    log.append("metrics", 100, values={"images_per_second": 1.0})
    log.append("checkpoint", 100, scores={})
    assert "2.0 min" in describe(comparison)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kimg", "-1"], "--kimg -1: allowed: more than 0"),
        (["--minutes", "0"], "--minutes 0: allowed"),
        (["--kimg", "1", "--out", "compare.pdf"], "name a file ending in .html"),
    ],
)
def test_a_mistake_exits_2(
    growing: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", growing, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_ends_where_it_was_stopped_says_so(tmp_path: Path) -> None:
    for status in ("stopped", "finished", "finished"):
        log = EventLog(tmp_path)
        log.append("end", 100, status=status)
        log.append("end", 100, status=status)
    assert [event["status"] for event in run_folder.read_events(tmp_path)] == [
        "stopped",
        "finished",
    ]
    # its last checkpoint was damaged, and it was stopped again on the way there
    EventLog(tmp_path).append("end", 50, status="stopped")
    assert not run_folder.finished(run_folder.read_events(tmp_path))


# ---- whole comparisons -------------------------------------------------------------------------


def engines(function: Any) -> Any:
    """Marks of a test that starts Ray, Prefect and MLflow."""
    for mark in (
        pytest.mark.slow,
        # the code of Ray, MLflow and Prefect uses what they have deprecated
        pytest.mark.filterwarnings(r"ignore::DeprecationWarning"),
        pytest.mark.filterwarnings(r"ignore::FutureWarning"),
        pytest.mark.usefixtures("prefect_server", "local_ray"),
    ):
        function = mark(function)
    return function


def mlflow_runs(comparison: Comparison) -> dict[str, Any]:
    """MLflow's runs of a comparison, by name."""
    client = tracking.connect(comparison.configs[0])
    experiment = tracking.experiment_of(client, comparison.configs[0])
    found = client.search_runs([experiment], f"tags.compare = '{comparison.id}'")
    return {run.info.run_name: run for run in found}


@engines
def test_the_same_images_for_two_seeds_then_a_second_time_for_nothing(
    growing: str, tmp_path: Path
) -> None:
    comparison = planned([growing], ["seed=7"], kimg=0.096, seeds=2)
    out = tmp_path / "out" / "both.html"
    found: Facts = flow.compare_flow(comparison, out)
    assert [entry.error for entry in found.entries] == [None, None]
    assert [entry.kimg for entry in found.entries] == [0.096, 0.096]
    for entry in found.entries:
        assert [point.kimg for point in entry.checkpoints][-1] == 0.096
        assert len(entry.checkpoints) >= 6 and FD in entry.scores
        assert entry.scores["ppl_z_end_efficientnet_lite0"] > 0
        assert entry.minutes > 0 and entry.images_per_second
        assert entry.generator_parameters > 0 < entry.other_parameters
        assert entry.protocol["latents"] == 1, "which are the same for all seeds"
        notes = " ".join(entry.notes)
        assert "schedule of 0.192 kimg was cut at 0.096" in notes
        assert "grown to 8 of 8 px, faded in by 25%" in notes, "trained at 16 of 64 images"
    first, second = found.entries
    assert first.picture is not None and first.picture.width == 8 * 8 and second.picture is None
    assert (first.seed, second.seed) == (7, 8) and first.scores[FD] != second.scores[FD]
    assert first.run.endswith("-seed7") and second.run.endswith("-seed8")
    assert "growing has the Fréchet distance" in out.read_text()
    assert "growing seed 7" in out.read_text() and "growing seed 8" in out.read_text()
    assert Facts.model_validate_json(out.with_suffix(".json").read_text()) == found
    assert (comparison.folder / "compare.html").read_text() == out.read_text()

    # in MLflow: the runs by their tag, and the report
    tracked = mlflow_runs(comparison)
    assert sorted(tracked) == sorted([comparison.id, *(entry.run for entry in found.entries)])
    assert {run.info.status for run in tracked.values()} == {"FINISHED"}
    assert [tracked[entry.run].data.params["seed"] for entry in found.entries] == ["7", "8"]
    client = tracking.connect(comparison.configs[0])
    kept = client.list_artifacts(tracked[comparison.id].info.run_id)
    assert sorted(file.path for file in kept) == ["compare.html", "compare.json"]

    # in Prefect: a table and the chart
    with get_client(sync_client=True) as prefect:
        shown = {str(a.key): str(a.data) for a in prefect.read_artifacts(limit=200)}
    assert "| growing | 2 |" in shown["comparison"]
    assert shown["comparison-chart"].startswith("data:image/svg+xml;base64,")

    # again: the same report, and nothing is trained
    before = trained(comparison.configs[0])
    again = flow.compare_flow(comparison)
    assert trained(comparison.configs[0]) == before
    assert again == found
    assert len(mlflow_runs(comparison)) == 3


def wait_for_a_tick(workspace: Path, name: str, given_up: Callable[[], bool]) -> None:
    """Until the recipe trains."""
    while not given_up():
        for run_dir in workspace.glob(f"train/{name}-*"):
            if any(event["kind"] == "metrics" for event in run_folder.read_events(run_dir)):
                return
        time.sleep(0.2)


@pytest.mark.fault(
    "a comparison cancelled while it trains; one of its recipes diverges",
    "the same command goes on, within the same budget, and compares the others",
)
@engines
def test_a_weekly_comparison_goes_on_where_it_was_cancelled_and_loses_nothing_by_a_failure(
    growing: str, styles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    minutes = 0.4  # much more than it takes to see that the flow run is cancelled, and to start
    quick = ["train.tick_kimg=0.016", "train.checkpoint_kimg=50"]
    endless = recipe_like(styles, tmp_path, "endless", family__kimg=500)
    diverging = recipe_like(styles, tmp_path, "diverging", family__kimg=500, family__lr=1000)
    week = Contest(recipes=[endless, growing, diverging], settings=quick, minutes=minutes)
    comparison = week.comparison()
    assert all(config.data.grow for config in comparison.configs)
    workspace, over = comparison.configs[0].workspace, threading.Event()

    def cancel() -> None:
        """As the UI does."""
        wait_for_a_tick(workspace, "endless", over.is_set)
        with get_client(sync_client=True) as client:
            name = f"compare-{comparison.id}"
            (run,) = (run for run in client.read_flow_runs() if run.name == name)
            client.set_flow_run_state(run.id, Cancelling())

    thread = threading.Thread(target=cancel)
    thread.start()
    one_by_one = comparison.model_copy(update={"at_once": 1})
    state = flow.compare_flow(one_by_one, return_state=True)
    over.set()
    thread.join()
    assert state.is_cancelled() and "the same command goes on" in str(state.message)
    (first,) = workspace.glob("train/endless-*")
    stopped = run_folder.read_events(first)[-1]
    assert (stopped["kind"], stopped["status"]) == ("end", "stopped")
    others = [path for path in workspace.glob("train/*") if path != first]
    assert [run_folder.read_events(path) for path in others] == [[], []], "they have not begun"

    # it goes on by the flow that a schedule runs, side by side
    found: Facts = compare_again_flow(week)
    cut, ended, failed = found.entries
    assert found.id == comparison.id and cut.run == first.name
    # its time was used up, and ended it; the log counts the steps alone, and a tick for each step
    # takes longer than the step where the machine has other work
    assert cut.minutes > 0.2 * minutes and stopped["nimg"] / 1000 < cut.kimg < 500
    assert cut.error is None and cut.checkpoints[-1].kimg == cut.kimg and FD in cut.scores
    assert cut.scores["ppl_z_end_efficientnet_lite0"] > 0
    assert "was cut at" in " ".join(cut.notes) and "grown" not in " ".join(cut.notes)
    assert all(one.picture is not None and one.picture.width == 8 * 8 for one in (cut, ended))
    assert ended.kimg == 0.192 and ended.error is None
    if ended.minutes < 0.97 * minutes:
        assert "its schedule of 0.192 kimg ended after" in " ".join(ended.notes)
    assert failed.error is not None and "not finite" in failed.error
    record = json.loads((comparison.folder / "diverging.json").read_text())
    assert record["done"] is False and record["run"] == failed.run

    # what is shown of it: the page, the runs and the report in MLflow, the flow run in Prefect
    page = (comparison.folder / "compare.html").read_text()
    assert "Failed: " in page and "not finite" in page
    status = {run.info.run_name: run.info.status for run in mlflow_runs(comparison).values()}
    done = dict.fromkeys([cut.run, ended.run, comparison.id], "FINISHED")
    assert status == done | {failed.run: "FAILED"}
    with get_client(sync_client=True) as prefect:
        (run,) = (run for run in prefect.read_flow_runs() if run.name == "compare-again")
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        artifacts = prefect.read_artifacts(flow_run_filter=of_run, limit=200)
    shown = {str(a.key): str(a.data) for a in artifacts}
    assert all(f"| {name} |" in shown["comparison"] for name in ("growing", "endless"))
    assert "diverging" in shown["comparison"]
    assert shown["comparison-chart"].startswith("data:image/svg+xml;base64,")


def endless_comparison(styles: str, folder: Path, checkpoint_kimg: float) -> tuple[Path, list[str]]:
    """The workspace and the command of a comparison that does not end by itself."""
    endless = recipe_like(styles, folder, "endless", family__kimg=500)
    command = [sys.executable, "-m", "pipelines.cli.main", "compare", endless, "--minutes", "60"]
    command += ["--set", "train.tick_kimg=0.016"]
    command += ["--set", f"train.checkpoint_kimg={checkpoint_kimg}"]
    return planned([endless], minutes=60).configs[0].workspace, command


def started(command: list[str]) -> subprocess.Popen[str]:
    """A command in a session of its own, with what it says in a pipe."""
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
def test_an_interrupt_saves_a_checkpoint(styles: str, tmp_path: Path) -> None:
    workspace, command = endless_comparison(styles, tmp_path, checkpoint_kimg=50)
    with started(command) as process:
        wait_for_a_tick(workspace, "endless", lambda: process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)  # all that it started, as Ctrl-C in a terminal does
        _, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED, said
    assert "endless  1 of 1" in said and "stopping: the workers save" in said
    assert "the same command goes on" in said and "Traceback" not in said
    (run_dir,) = workspace.glob("train/endless-*")
    end = run_folder.read_events(run_dir)[-1]
    assert (end["kind"], end["status"]) == ("end", "stopped")
    assert int(list_checkpoints(run_dir)[0].name) == end["nimg"], "all that was trained is saved"


@pytest.mark.fault(
    "SIGKILL of the raylet while recipes are compared",
    "one message with cause and remedy; the same command goes on with the same runs",
)
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_ends_while_recipes_are_compared(
    styles: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    workspace, command = endless_comparison(styles, tmp_path, checkpoint_kimg=0.1)
    with started(command) as process:
        while not list(workspace.glob("train/endless-*/checkpoints/*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        subprocess.run(["pkill", "-KILL", "--session", str(process.pid), "raylet"], check=True)
        killed = time.monotonic()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    (message,) = (line for line in said.splitlines() if "Ray has ended" in line)
    assert "the same command goes on" in message and "Traceback" not in said
    (run_dir,) = workspace.glob("train/endless-*")
    reached = run_folder.reached(run_folder.read_events(run_dir))

    with started(command) as process:
        while run_folder.reached(run_folder.read_events(run_dir)) <= reached:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        record_property("recovered_s", time.monotonic() - killed)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED, said
    assert list(workspace.glob("train/endless-*")) == [run_dir]


def test_scores_of_another_protocol_are_not_set_beside(growing: str, styles: str) -> None:
    """A run that was resumed under other settings, say."""
    comparison = planned([growing, styles], kimg=1)
    shards = shard_of(comparison.configs[0])
    comparison.folder.mkdir(parents=True)
    contestants = []
    for images, config in zip((16, 8), comparison.configs, strict=True):
        contestant = contest.Contestant(Training(config), None, shards, comparison.folder)
        protocol = {"data": "x", "extractor": "e", "images": images}
        EventLog(contestant.run_dir).append(
            "checkpoint", 16, scores={FD: 3.0}, protocol=protocol, path="checkpoints/16"
        )
        contestants.append(contestant)
    first, second = gather.entries(contestants)
    assert first.error is None
    assert second.error is not None and "different numbers of images (16 and 8)" in second.error


def test_progress_is_the_time_of_a_growing_run_and_not_its_images(growing: str) -> None:
    (config,) = planned([growing], kimg=0.192).configs
    comparison = planned([growing], kimg=0.192)
    comparison.folder.mkdir(parents=True)
    training = Training(config)
    contestant = contest.Contestant(training, None, shard_of(config), comparison.folder)
    assert contestant.fraction() == 0.0
    EventLog(contestant.run_dir).append("metrics", 64, values={"images_per_second": 64.0})
    contestant.news()
    # a third of the images, at 4 of 8 px: a later one costs 1.4 times as much
    assert contestant.fraction() == pytest.approx(0.95 / (1 + 2 * 2**0.5))
