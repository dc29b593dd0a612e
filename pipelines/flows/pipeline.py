"""The Prefect flows: shard, train, evaluate, promote, and one that chains them.

Each flow takes the whole configuration tree, which Prefect validates and shows as a form, and does
its work in one or two tasks, because a flow or task run costs a second. Prefect retries tasks that
may be done twice. It does not retry training, which restarts its own workers
(`cluster.max_failures`) and resumes. Sharding is skipped if the files and their hashes are right,
never by a cached result of Prefect, which would not notice that the files are gone.

The commands make the paths of a configuration absolute, and so does `run_flow`, which deployments
run. The other flows expect absolute paths.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from prefect import Flow, flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled
from prefect.tasks import Task

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.runs import run_folder, stop_signals
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import Event
from gan_train.text import code, markdown
from gan_train.training.fitting import schedule_of_run
from gan_train.training.schedule import check, checkpoints, schedule_end, world_sizes
from pipelines.compute import elastic, jobs, sharding, training
from pipelines.compute.cluster import connected, identifiers
from pipelines.flows import artifacts, evaluation, price
from pipelines.flows.driver import Attention, Ended, attend
from pipelines.flows.plan import image_shape
from pipelines.flows.time_left import Forecast
from pipelines.registry import champions, versions

log = logging.getLogger(__name__)


def _unless_users_mistake(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to try a failed task again: a server may come back, but a user's mistake stays."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, UserError) or error.__cause__ is not None


def final_state(flow: Flow[..., Any], *arguments: Any) -> State[Any]:
    """Run a flow in this process; returns how it ended, and raises nothing."""
    return cast("State[Any]", flow(*arguments, return_state=True))


# ---- shard -------------------------------------------------------------------------------------


@task(
    name="shard",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=_unless_users_mistake,
    cache_policy=NO_CACHE,
)
def write_shards(config: Config, verify: bool) -> Path:
    """Write the shards that are missing or damaged, and return the folder of the data set."""
    progress = artifacts.Progress("sharding", "Shards written")
    sharded = sharding.shard(config, progress, verify=verify)
    index = sharded.index
    artifacts.note(
        "data-set",
        f"{'Verified' if sharded.skipped else 'Written'}: **{index.samples} images** of"
        f" {index.resolution} px in {len(index.shards)} shards, {len(index.classes)} classes, "
        f"{index.quarantined} quarantined.\n\n{code(str(sharded.directory))}\n\ncontent hash "
        f"`{index.content_hash}`",
    )
    log.info("shards %s: %s", "verified" if sharded.skipped else "written", sharded.directory)
    return sharded.directory


@flow(name="shard", flow_run_name="shard-{config.name}")
def shard_flow(config: Config, verify: bool = False) -> Path:
    """Turn the images of `data.source` into verified WebDataset shards; returns their folder.

    With `verify` every file of the source and of the shards is read again (`data.verify_days`).
    """
    return write_shards(config, verify)


# ---- train -------------------------------------------------------------------------------------


def stop_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the Ray job of a flow run that was cancelled or has died. Prefect ends only the flow's
    own processes, and a job on another cluster is not one of them."""
    address = flow_run.parameters["config"].get("cluster", {}).get("jobs")
    if address:
        jobs.stop(address, str(flow_run.id), flow_run.parameters.get("resume"))


@task(name="train", cache_policy=NO_CACHE)
@stop_signals.one_term()
def train_workers(config: Config, shards: Path, run_dir: Path) -> Ended:
    """Train under Ray, and meanwhile report to MLflow and Prefect."""
    index = Index.load(shards)
    stages = check(config, index.image_shape, world_sizes(config, index.image_shape)[0])

    def on_event(event: Event) -> None:
        if event["kind"] == "checkpoint":
            artifacts.score_table(run_folder.score_table(run_dir), f"Scores of {run_dir.name}")
            if grid := run_folder.newest_grid(run_dir):
                artifacts.sample_grid(grid, f"{run_dir.name} at {event['nimg'] / 1000:.0f} kimg")
        elif event["kind"] == "diagnosis":
            artifacts.diagnosis(run_dir.name, event)

    attention = Attention(
        on_event=on_event,
        on_warning=lambda message: artifacts.alarm(run_dir.name, message),
        on_progress=artifacts.Progress("training", "Images shown, of the whole schedule"),
        cancelled=artifacts.cancelled,
    )
    end = schedule_end(config, stages)
    forecast = Forecast(stages, end, checkpoints(config, stages, end))
    try:
        with (
            run_folder.exclusive(run_dir),
            _workers(config, shards, run_dir) as (fit, ids),
            versions.Shipper(config, run_dir, index, ids),
        ):
            return attend(fit, run_dir, forecast, attention)
    except TerminationSignal:
        # Prefect ends a cancelled run by SIGTERM. The task would count as crashed if it let this
        # pass, though the workers have saved and ended.
        if not artifacts.cancelled():
            raise
        newest = next(iter(list_checkpoints(run_dir)), None)
        return Ended(False, int(newest.name) if newest else 0, training.Outcome(newest, {}))


@contextmanager
def _workers(
    config: Config, shards: Path, run_dir: Path
) -> Iterator[tuple[Callable[[], training.Outcome], dict[str, str]]]:
    """Yield the training as a call that blocks, and its identifiers in Prefect and Ray."""
    ids = {"prefect.flow_run_id": runtime.flow_run.get_root_flow_run_id() or ""}
    if config.cluster.jobs is not None:
        job = jobs.submission_of(config.cluster.jobs, run_dir)
        fit = partial(jobs.run, config, shards, run_dir, job, ids["prefect.flow_run_id"])
        yield fit, ids | {"ray.submission_id": job}
        return
    with connected(config.cluster):
        yield partial(elastic.fit, config, shards, run_dir), ids | identifiers()


@flow(
    name="train",
    flow_run_name="train-{config.name}",
    on_cancellation=[stop_job],
    on_crashed=[stop_job],
)
def train_flow(config: Config, resume: str | None = None) -> Any:
    """Train on the shards of this configuration; returns the run's folder.

    `resume` names a run to go on with. The flow run ends as Cancelled when the training was
    stopped; its last checkpoint then holds all that was trained.
    """
    if resume is None:
        run_dir = run_folder.new(config, sharding.finished(config))
    else:
        run_dir = run_folder.find(config, resume)
        if config.train.fitted_minutes is None:
            config = schedule_of_run(config, run_folder.configuration(run_dir))
    ended = train_workers(config, run_folder.shards_of(run_dir), run_dir)
    if not ended.finished:
        return _cancelled(run_dir, ended.nimg)
    return run_dir


def _cancelled(run_dir: Path, nimg: int) -> State[Any]:
    """The state in which a flow run ends whose training was stopped. The reason and the command
    that goes on stand on its page, because the last word of a run that a Prefect worker has
    cancelled is the worker's."""
    asked = artifacts.cancellation()
    if asked is None:
        reason = f"The file `{training.STOP}` in the run's folder asked for it."
    else:
        reason = "The flow run was cancelled" + (f": {asked}" if asked else ".")
    recipe = shlex.quote(str(run_dir / run_folder.CONFIG))
    at = f"stopped at {nimg / 1000:.1f} kimg"
    artifacts.note_above(
        "stopped",
        f"**Training {at}.** {reason}\n\nThis goes on from there:\n\n"
        f"```\ngan-train run {recipe} --resume {run_dir.name}\n```",
    )
    return Cancelled(message=f"{at}; go on with --resume {run_dir.name}")


# ---- evaluate ----------------------------------------------------------------------------------


@task(
    name="score",
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=_unless_users_mistake,
    cache_policy=NO_CACHE,
)
def score_checkpoint(config: Config, shards: Path, checkpoint: Path) -> dict[str, Any]:
    """Score one checkpoint on the workers, under `config.evaluate`."""
    return training.evaluate(config, shards, checkpoint)


@flow(name="evaluate", flow_run_name="evaluate-{config.name}")
def evaluate_flow(config: Config, target: str) -> list[dict[str, Any]]:
    """Score the checkpoints that have no score yet; returns the table of scores.

    `target` is a run, whose table covers all its checkpoints, or the folder of one checkpoint or
    of a downloaded generator. New scores of a run are recorded as training records its own, so that
    `promote` counts them; with other `evaluate` settings than the run's, all its checkpoints are
    scored anew and nothing is written. A single generator is always scored anew under
    `config.evaluate`, against the data of `config`, and nothing is written.
    """
    if (Path(target) / "generator.json").is_file():
        scored = score_checkpoint(config, sharding.finished(config), Path(target).absolute())
        rows = [{"checkpoint": Path(target).name, **scored["scores"]}]
    else:
        run_dir = run_folder.find(config, target)
        rows = evaluation.evaluate_run(config, run_dir, score_checkpoint)
    artifacts.score_table(rows, f"Scores of {Path(target).name}")
    return rows


# ---- promote -----------------------------------------------------------------------------------


@task(
    name="register",
    retries=3,
    retry_delay_seconds=[2, 10, 60],
    retry_condition_fn=_unless_users_mistake,
    cache_policy=NO_CACHE,
)
def register(config: Config, shards: Path, run_dir: Path) -> versions.Registration:
    """Register the best checkpoint; doing it again finds the version that is there."""
    ids = {"prefect.flow_run_id": runtime.flow_run.get_root_flow_run_id() or ""}
    return versions.register_best(config, run_dir, Index.load(shards), ids | identifiers())


@flow(name="promote", flow_run_name="promote-{config.name}")
def promote_flow(
    config: Config, run: str | None = None, version: int | None = None, force: bool = False
) -> versions.Registration:
    """Register the best generator of `run`, which becomes champion if it is better beyond
    chance; or make an existing `version` champion by hand (`force`: also where scores are not
    comparable)."""
    if (run is None) == (version is None):
        raise UserError("promote takes either a run or a version")
    if version is not None:
        registration = versions.promote(config, version, force)
        _show_registration(registration)
        return registration
    run_dir = run_folder.find(config, str(run))
    shards = run_folder.shards_of(run_dir)
    evaluation.report_best(config, run_dir, score_checkpoint)
    _score_champion(config, run_dir, shards)
    registration = register(config, shards, run_dir)
    _show_registration(registration)
    if grid := run_folder.newest_grid(run_dir):
        artifacts.sample_grid(grid, f"Samples of {run_dir.name}")
    return registration


def _score_champion(config: Config, run_dir: Path, shards: Path) -> None:
    """Score the champion on the latents on which the run's best checkpoint was scored anew, if it
    was scored in the same way on others: a version of an earlier version of this project."""
    reported = versions.reported(config, run_dir)
    if reported is None:
        return
    champion = champions.on_other_latents(config, reported["protocol"])
    if champion is None:
        return
    fresh, folder = evaluation.fresh(config, run_dir), versions.download(config, str(champion))
    champions.record_score(config, champion, score_checkpoint(fresh, shards, folder))


def _show_registration(registration: versions.Registration) -> None:
    """Show the new version, and tell the server when it has become champion."""
    page = registration.ui
    link = f"[page in MLflow]({page})" if page.startswith("http") else f"```\n{page}\n```"
    artifacts.note(
        "registered",
        f"**{registration.model} version {registration.version}** is `{registration.alias}`: "
        f"{markdown(registration.reason)}.\n\n{link}",
    )
    if registration.appointed:
        artifacts.event(
            "gan-train.champion",
            f"gan-train.model/{registration.model}",
            version=registration.version,
            metric=registration.metric,
            score=registration.score,
            reason=registration.reason,
            page=page,
        )


# ---- all of it ---------------------------------------------------------------------------------


@flow(
    name="gan-train",
    flow_run_name="run-{config.name}",
    on_cancellation=[stop_job],
    on_crashed=[stop_job],
)
def run_flow(config: Config, resume: str | None = None, minutes: float | None = None) -> Any:
    """Shard, train, score and register; returns the run's folder and its registration.

    With `minutes` the schedule of a new run is first made shorter or longer, so that the whole flow
    takes so long on this machine (`pipelines/flows/price.py`).

    Training scores every checkpoint that it goes on from, so nothing is left to score. This flow
    is what a deployment runs: paths in `config` may be relative to where the process stands.
    """
    config = recipes.with_absolute_paths(config)
    data = sharding.plan_of(config)
    if minutes is not None and resume is None:
        config = price.fitted_here(config, minutes, data, image_shape(config, data))
    # The data are planned once, and Ray is started once, unless another cluster trains.
    with (
        sharding.planned(config, data),
        nullcontext() if config.cluster.jobs else connected(config.cluster),
    ):
        shard_flow(config)
        state = final_state(train_flow, config, resume)
        if state.is_cancelled():
            return Cancelled(message=state.message)
        run_dir: Path = state.result()
        return run_dir, promote_flow(config, run_dir.name)
