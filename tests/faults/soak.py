"""A soak: real runs of the whole pipeline, with faults injected at random, against one without.

    python -m tests.faults.soak --minutes 30 --seed 0

One run is left alone. Then runs of the same recipe, each in a workspace and with a registry of its
own, are harmed until the minutes are over: a schedule that depends on the seed alone says which
fault comes next. After each the training has to go on, by itself or by the command that a person
would type. At its end a run has to have the same weights bit for bit, the same events once each,
the same metrics in MLflow, and one registered version with the same score. What differs ends the
soak with status 1. The report goes to build/soak.md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import read_events
from tests.faults.harmed import FAULTS, ROOT, Pipeline
from tests.training import assert_same_bits

RECOVERY_S = 300.0
"""A training that does not go on for so many seconds after a fault has been lost."""
SCORE = "fd_efficientnet_lite0"
VARYING = ("images_per_second", "memory_gib")
"""Metrics that differ between two runs of the same bits."""


# ---- comparing ---------------------------------------------------------------------------------


def told(run_dir: Path, apart: set[int]) -> list[dict[str, Any]]:
    """What the log of a run says, without times, what differs from machine to machine, and what it
    says at the positions `apart`. Stops and starts are left out: a harmed run has more of them."""
    kept = []
    for event in read_events(run_dir):
        if event["kind"] not in ("metrics", "image", "checkpoint") or event["nimg"] in apart:
            continue
        event = {key: value for key, value in event.items() if key not in ("time_ms", "device")}
        if "values" in event:
            event["values"] = {k: v for k, v in event["values"].items() if k not in VARYING}
        kept.append(event)
    return kept


def stops(whole: Path, harmed: Path) -> tuple[set[int], set[int]]:
    """The positions of the checkpoints that only the harmed run has, because it was asked to stop
    there; and these with the next tick of each, which averages what was trained since the stop."""
    ours, theirs = (
        {e["nimg"] for e in read_events(run) if e["kind"] == "checkpoint"}
        for run in (whole, harmed)
    )
    ticks = sorted(e["nimg"] for e in read_events(whole) if e["kind"] == "metrics")
    extra = theirs - ours
    after = {next((tick for tick in ticks if tick > stop), stop) for stop in extra}
    return extra, extra | after


def recorded(pipeline: Pipeline, apart: set[int]) -> dict[str, Any]:
    """What the registry says: the metrics of the run, each step once, and the versions."""
    import mlflow

    client = mlflow.MlflowClient(pipeline.registry.uri, pipeline.registry.uri)
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    run, *others = client.search_runs([experiment.experiment_id])
    metrics = {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
        for key in sorted(run.data.metrics)
        if not key.endswith(VARYING) and not key.startswith("best/")
    }
    versions = [
        {
            "version": version.version,
            "aliases": list(version.aliases),
            **{key: version.tags.get(key) for key in ("score", "metric", "weights_sha256")},
        }
        for version in client.search_model_versions("name = 'progan-demo'")
    ]
    doubled = [key for key, all_ in metrics.items() if len({step for step, _ in all_}) < len(all_)]
    return {
        "further runs": len(others),
        "status": run.info.status,
        "doubled metrics": doubled,
        "metrics": {
            key: [point for point in points if point[0] not in apart]
            for key, points in metrics.items()
        },
        "versions": versions,
    }


def best_of(run_dir: Path) -> tuple[int, float]:
    """The position and the score of a run's best checkpoint, without those in growth."""
    scored = [
        (event["scores"][SCORE], event["nimg"])
        for event in read_events(run_dir)
        if event["kind"] == "checkpoint" and event["resolution"] == 8 and event["alpha"] == 1
    ]
    score, nimg = min(scored)
    return nimg, score


def differences(whole: Pipeline, harmed: Pipeline) -> Iterator[str]:
    """What the harmed run has lost, doubled or changed."""
    assert whole.run_dir and harmed.run_dir
    a, b = list_checkpoints(whole.run_dir)[0], list_checkpoints(harmed.run_dir)[0]
    if a.name != b.name:
        yield f"it ended at {b.name} images and not at {a.name}"
        return
    for name in ("networks", "generator", "optimizers"):
        try:
            assert_same_bits(
                load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
            )
        except AssertionError as error:
            yield f"{name}: {error}"
    extra, apart = stops(whole.run_dir, harmed.run_dir)
    first, second = (
        [json.dumps(event, sort_keys=True) for event in told(pipeline.run_dir, apart)]
        for pipeline in (whole, harmed)
        if pipeline.run_dir
    )
    if len(second) != len(set(second)):
        yield "an event stands twice in the log"
    for event in sorted(set(first) ^ set(second))[:4]:
        yield f"only {'the whole' if event in first else 'the harmed'} run says {event[:300]}"
    one, other = recorded(whole, apart), recorded(harmed, apart)
    best, score = best_of(harmed.run_dir)
    if best in extra:  # a checkpoint of a stop is as good as any, and may be the best
        one["versions"][0]["score"] = str(score)
        one["versions"][0]["weights_sha256"] = other["versions"][0]["weights_sha256"]
    for key in one:
        if one[key] != other[key]:
            yield f"MLflow's {key}: {str(one[key])[:600]} and {str(other[key])[:600]}"


# ---- the soak ----------------------------------------------------------------------------------


@dataclass
class Injected:
    """One fault, and how long the training took to go on after it."""

    name: str
    seconds: float


def harm(
    pipeline: Pipeline, chance: random.Random, pause: tuple[float, float], most: int
) -> list[Injected]:
    """Run the pipeline to its end, with at most `most` faults on the way."""
    done: list[Injected] = []
    pipeline.start()
    due = time.monotonic() + chance.uniform(*pause)
    names = sorted(FAULTS)
    while not pipeline.finished():
        time.sleep(0.2)
        if len(done) >= most or time.monotonic() < due:
            continue
        name = chance.choice(names)
        before, moment = pipeline.nimg(), time.monotonic()
        if not FAULTS[name](pipeline, chance):
            due = time.monotonic() + 1
            continue
        print(f"{name} at {before} images", flush=True)
        ended = False
        while pipeline.nimg() <= before and not (ended := pipeline.finished()):
            assert time.monotonic() - moment < RECOVERY_S, f"{name}: nothing goes on"
            time.sleep(0.2)
        done.append(Injected(name, time.monotonic() - moment))
        print(f"  goes on after {done[-1].seconds:.1f} s", flush=True)
        if ended:
            break
        due = time.monotonic() + chance.uniform(*pause)
    return done


def report(rounds: list[list[Injected]], seconds: float, seed: int, wrong: list[str]) -> str:
    """The report as Markdown: each fault, how often, and how soon the training went on."""
    every = [one for round_ in rounds for one in round_]
    lines = [
        f"{len(rounds)} harmed runs in {seconds / 60:.0f} minutes, {len(every)} faults, "
        f"seed {seed}; "
        + ("what differs from the run without faults:" if wrong else "all as without faults."),
        *(f"- {line}" for line in wrong),
        "",
        "| fault | times | goes on after (median, longest) |",
        "|---|---|---|",
    ]
    for name in sorted({one.name for one in every}):
        took = sorted(one.seconds for one in every if one.name == name)
        lines.append(f"| {name} | {len(took)} | {took[len(took) // 2]:.1f} s, {took[-1]:.1f} s |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Settings:
    """How long, with which faults, and what is trained."""

    minutes: float = 30
    seed: int = 0
    kimg: float = 8
    """Images at 8 pixels, in thousands: some two minutes, for a run's beginning and its end have
    had more faults that nobody knew than the hours between."""
    pause: tuple[float, float] = (2.0, 20.0)
    """The seconds between the end of one fault and the next, from and to."""
    most: int = 1000
    """The number of faults in a run at most."""


def soak(folder: Path, settings: Settings) -> tuple[str, bool]:
    """Harm runs until the minutes are over, at least one; returns the report and whether all of
    them ended as the run without faults did."""
    chance = random.Random(settings.seed)
    begun = time.monotonic()
    whole = Pipeline(folder / "whole", settings.kimg)
    rounds: list[list[Injected]] = []
    wrong: list[str] = []
    try:
        whole.start()
        while not whole.finished():
            assert not any(whole.statuses), "the run without faults failed: see whole/log.txt"
            time.sleep(0.5)
        print(f"without faults: {time.monotonic() - begun:.0f} s", flush=True)
        start = time.monotonic()
        while not rounds or (time.monotonic() - start < 60 * settings.minutes and not wrong):
            harmed = Pipeline(folder / f"harmed-{len(rounds)}", settings.kimg)
            try:
                rounds.append(harm(harmed, chance, settings.pause, settings.most))
                found = list(differences(whole, harmed))
                wrong += [f"run {len(rounds)}: {line}" for line in found]
            finally:
                harmed.close()
            print(f"run {len(rounds)}: {'differs' if found else 'as without faults'}", flush=True)
    finally:
        whole.close()
    return report(rounds, time.monotonic() - start, settings.seed, wrong), not wrong


def main() -> int:
    """The command."""
    # a shell's background job ignores it, and so would all that is started here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kimg", type=float, default=8, help="images at 8 pixels, in thousands")
    parser.add_argument("--keep", type=Path, help="a new folder, which stays")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(options.minutes, options.seed, options.kimg)
    text, same = soak(folder.absolute(), settings)
    place = ROOT / "build" / "soak.md"
    place.parent.mkdir(exist_ok=True)
    place.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{place}; runs in {folder}")
    if same and options.keep is None:
        shutil.rmtree(folder)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
