"""The flow `compare`: several recipes on one data set with the same budget, and one report.

    gan-train compare demo stylegan2-glyphs --minutes 4 --out compare.html

`plan.py` decides what is compared, and how. The trainings are ordinary runs (`contest.py`). The
folder `<workspace>/compare/<id>` holds the comparison's records and its report. The id is a digest
of the recipes, settings and budget, so the same command continues the same comparison; when all
trainings are done, it only writes the report again.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Cancelled

from gan_train import recipes
from gan_train.config import Config
from gan_train.files.atomic import write_aside
from gan_train.runs.events import read_events
from pipelines.comparison.contest import TAG, Contestant, race
from pipelines.comparison.facts import Facts, chart, sections
from pipelines.comparison.gather import entries
from pipelines.comparison.plan import Comparison
from pipelines.comparison.report import markdown, page
from pipelines.compute import sharding
from pipelines.compute.cluster import connected, on_this_machine
from pipelines.flows import artifacts, pipeline
from pipelines.registry import tracking

log = logging.getLogger(__name__)

PAGE, FACTS = "compare.html", "compare.json"


@flow(name="compare", flow_run_name="compare-{comparison.id}")
def compare_flow(comparison: Comparison, out: Path | None = None) -> Any:
    """Finish every training that is not done yet, write the report, and return its facts.

    With `out`, the page goes to that file, too, and the facts beside it. The flow run ends as
    Cancelled when training was stopped.
    """
    folder = comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    with connected(comparison.cluster):
        pipeline.shard_flow(comparison.configs[0])
        shards = sharding.finished(comparison.configs[0])
        slots, hardware = _room(comparison)
        contestants = [
            Contestant(
                training._replace(config=_shared(training.config, slots)),
                comparison.minutes,
                shards,
                folder,
            )
            for training in comparison.trainings
        ]
        if not race(contestants, slots, comparison.id):
            return Cancelled(message="stopped; the same command goes on")
    facts = _facts(comparison, contestants, slots, hardware)
    write_report(facts, folder / PAGE)
    if out is not None:
        write_report(facts, out)
    _publish(comparison, facts, folder)
    return facts


def _room(comparison: Comparison) -> tuple[int, str]:
    """The number of trainings that run side by side, and the hardware in words."""
    import ray

    resources = ray.cluster_resources()
    cpus = resources.get("CPU", 0.0)
    if on_this_machine(comparison.cluster):  # Ray may count more than there are
        cpus = min(cpus, os.cpu_count() or 1)
    gpus = resources.get("GPU", 0.0)
    kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    hardware = f"{cpus:.0f} CPU cores"
    if gpus:
        hardware += f", {gpus:.0f} GPUs" + (f" ({', '.join(sorted(kinds))})" if kinds else "")
    return comparison.slots(cpus, gpus), hardware


def _shared(config: Config, slots: int) -> Config:
    """The recipe with its share of this machine's cores, if trainings run side by side on them."""
    if slots == 1 or not on_this_machine(config.cluster) or config.train.threads is not None:
        return config
    threads = max(1, (os.cpu_count() or 1) // (slots * config.cluster.workers))
    return recipes.change(config, {"train.threads": threads})


# ---- the report --------------------------------------------------------------------------------


def _facts(
    comparison: Comparison, contestants: Sequence[Contestant], slots: int, hardware: str
) -> Facts:
    index, config = contestants[0].index, comparison.configs[0]
    times = [event["time_ms"] for c in contestants for event in read_events(c.run_dir)]
    ended = datetime.fromtimestamp(max(times) / 1000) if times else datetime.now()
    return Facts(
        id=comparison.id,
        budget=comparison.budget,
        data=f"{Path(config.data.source).name}: {index.samples:,} images of {index.resolution} px, "
        f"{config.data.colour}, {len(index.classes) or 'no'} classes",
        content_hash=index.content_hash,
        hardware=hardware,
        finished=ended.strftime("%Y-%m-%d %H:%M"),
        counted=tuple(_counted(comparison, slots)),
        target=comparison.target,
        entries=entries(contestants),
    )


def _counted(comparison: Comparison, slots: int) -> list[str]:
    """Sentences that say how the figures were measured."""
    said = [
        "Only training counts as time; sharding, start-up, saving and scoring do not. The time of "
        "a tick is its images divided by the speed that the trainer measured. Images that a "
        "restart repeated count once."
    ]
    if comparison.minutes is not None:
        said.append(
            f"Each run was stopped after {comparison.minutes:g} minutes of training, or a few "
            "steps later, and then scored. Schedules were neither stretched nor shortened; a run "
            "whose schedule ended before is shown as it was at its end."
        )
    else:
        said.append(
            f"Every run ended at {comparison.kimg:g} thousand images. Longer schedules were cut "
            "there and not scaled; the last stage of a shorter schedule went on."
        )
    said.append("All recipes were trained on the same shards, and scored by the same protocol.")
    if comparison.seeds > 1:
        said.append(
            f"Each recipe was trained {comparison.seeds} times, from its own seed on. Its "
            "trainings differ in their seed alone, and all were scored on the same latents."
        )
    one, many = ("recipe trained", "recipes trained")
    if comparison.seeds > 1:
        one, many = ("training ran", "trainings ran")
    said += [
        "The time to a score ends at the first scored checkpoint that was at least as good"
        + ("." if comparison.target is not None else "; the score is the worst final one."),
        "Scores, samples and path lengths belong to the last checkpoint. Path lengths were "
        "measured between latents z, at the ends of paths.",
        f"One {one} at a time."
        if slots == 1
        else f"Up to {slots} {many} side by side, and shared the hardware.",
    ]
    if len({config.cluster.workers for config in comparison.configs}) > 1:
        said.append("The recipes had different numbers of workers, which changes their speed.")
    return said


def write_report(facts: Facts, path: Path) -> None:
    """Write the page to `path`, and its facts as JSON beside it."""
    write_aside(path, page(facts).encode())
    write_aside(path.with_suffix(".json"), facts.model_dump_json(indent=1).encode())


def _publish(comparison: Comparison, facts: Facts, folder: Path) -> None:
    """Show the report in Prefect, and put it beside the runs in MLflow."""
    artifacts.note("comparison", markdown(facts))
    svg = next((svg for s in sections(facts) if (svg := chart(s, "minutes of training"))), None)
    if svg is not None:
        url = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
        artifacts.image("comparison-chart", url, "Score over minutes of training")
    config = comparison.configs[0]
    try:
        client = tracking.connect(config)
        experiment = tracking.experiment_of(client, config)
        found = client.search_runs(
            [experiment], f"tags.{TAG} = '{facts.id}' and tags.report = 'yes'", max_results=1
        )
        tags = {TAG: facts.id, "report": "yes", "mlflow.source.name": "gan-train"}
        run = found[0] if found else client.create_run(experiment, tags=tags, run_name=folder.name)
        for name in (PAGE, FACTS):
            client.log_artifact(run.info.run_id, str(folder / name))
        client.set_terminated(run.info.run_id)
    except tracking.failures() as error:
        log.warning("the report is not in MLflow, but in %s: %s", folder / PAGE, error)
