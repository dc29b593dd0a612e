"""Trains the recipes of a comparison within their budget, side by side where there is room.

Each training has a thread of its own, as a Prefect task around a Ray Train run; this file's
main loop follows the event logs and stops the runs whose time is over. At an interrupt all runs
save a checkpoint, and the same command goes on later.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from gan_train import recipes
from gan_train.adversary import Generates
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.files.atomic import read_json, write_json
from gan_train.runs import run_folder, stop_signals
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.training.schedule import check, checkpoints, schedule_end
from pipelines.comparison.plan import Training
from pipelines.comparison.training_time import Stopwatch
from pipelines.compute import elastic, training
from pipelines.compute.cluster import RayEnded, check_alive, identifiers
from pipelines.flows import artifacts
from pipelines.flows.progress import score_line
from pipelines.flows.running import POLL_S, RunningTraining, leave_ray, save_and_end
from pipelines.flows.time_left import Forecast, in_words
from pipelines.registry import versions

TAG = "compare"
"""The tag of a comparison's runs in MLflow; its value is the comparison's id."""
_ASK_S, _LINE_S = 10.0, 15.0  # seconds between questions to Prefect, and between printed lines
_SCORING = 0.05  # the share of a training's progress that stands for the scoring at its end


class Record(BaseModel):
    """What a comparison remembers of a training that is not in its run's log. It is stored in the
    comparison's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    run: str
    lengths: dict[str, float] = {}
    """Path lengths of the last checkpoint."""
    done: bool = False
    error: str | None = None


class Contestant:
    """One training of a recipe, its run, and how much of the budget it has used."""

    def __init__(
        self, training: Training, minutes: float | None, shards: Path, folder: Path
    ) -> None:
        """The training's configuration holds a budget in images, `minutes` one in time. The record
        is stored in `folder`."""
        self.training, self.minutes, self.shards = training, minutes, shards
        self.config = config = training.config
        self.label = training.label
        self.index = Index.load(shards)
        self._path = folder / training.record
        self.record = self._take_up()
        self.run_dir = run_folder.folder(config) / self.record.run
        stages = check(config, self.index.image_shape, config.cluster.workers)
        self.end = schedule_end(config, stages)
        places = checkpoints(config, stages, self.end)
        self.watch = Stopwatch(places)
        self.forecast = Forecast(stages, self.end, places)
        for event in run_folder.read_events(self.run_dir):
            self.watch.take(event, live=False)
            self.forecast.take(event)
        self.running: RunningTraining[None] = RunningTraining(self.run_dir)

    def _take_up(self) -> Record:
        """The record that an earlier attempt left, or else a record of a new run."""
        if self._path.exists():
            record = Record.model_validate(read_json(self._path))
            if (run_folder.folder(self.config) / record.run / run_folder.CONFIG).is_file():
                return record
        several = self.training.several
        record = Record(run=run_folder.new(self.config, self.shards, tell_seed=several).name)
        self._write(record)
        return record

    def _write(self, record: Record) -> None:
        write_json(self._path, record.model_dump(mode="json"))
        self.record = record

    def keep(self, **changes: object) -> None:
        """Change the record, in memory and on disk."""
        self._write(Record.model_validate(self.record.model_dump() | changes))

    def time_is_over(self) -> bool:
        """Whether the budget in time is used up."""
        return self.minutes is not None and self.watch.seconds() >= 60 * self.minutes

    def fraction(self) -> float:
        """The share of the training that is done, in time, from 0 to 1."""
        spent, left = self.watch.seconds(), self.forecast.seconds()
        used = 0.0 if left is None else spent / max(spent + left, 1e-9)
        if self.minutes is not None:
            used = max(used, spent / (60 * self.minutes))
        return 1.0 if self.record.done else (1 - _SCORING) * min(1.0, used)

    def stands(self) -> str:
        """How far the training has come, in a few words."""
        spent = f"{self.watch.seconds() / 60:.1f} of {self.minutes:g} min, " if self.minutes else ""
        return f"{self.label} {spent}{self.watch.nimg / 1000:.1f} kimg"

    def news(self) -> list[str]:
        """Lines that tell a person what has happened since the last call."""
        said = []
        for event in self.running.events():
            self.watch.take(event)
            self.forecast.take(event)
            if event["kind"] == "checkpoint":
                kimg = event["nimg"] / 1000
                said.append(f"{self.label}  {kimg:.1f} kimg  {score_line(event)}")
        return said + [f"{self.label}  {text}" for text in self.running.warnings()]

    def train(self, stopping: threading.Event, ids: dict[str, str]) -> None:
        """Train within the budget, score its end, and measure path lengths; returns after that."""
        ids = ids | identifiers()
        with (
            run_folder.exclusive(self.run_dir),
            versions.Shipper(self.config, self.run_dir, self.index, ids),
        ):
            if not (self.time_is_over() or self._finished()):
                self._fit(self.config)
            if not (self._finished() or stopping.is_set()):
                # its time was over: a schedule that ends here makes training score only
                reached = int(list_checkpoints(self.run_dir)[0].name)
                self._fit(recipes.change(self.config, {"train.total_kimg": reached / 1000}))
        if self._finished() and not stopping.is_set():
            self.keep(lengths=self._path_lengths(), done=True, error=None)

    def _fit(self, config: Config) -> None:
        self.running.train(partial(elastic.fit, config, self.shards, self.run_dir))

    def _finished(self) -> bool:
        return run_folder.finished(run_folder.read_events(self.run_dir))

    def _path_lengths(self) -> dict[str, float]:
        """Path lengths between latents z, of the last checkpoint; empty for a family that does not
        make images from latents. All trainings of a recipe are measured on the same paths."""
        adversary = self.config.family.build(self.index.image_shape, self.config.train.batch)
        if not isinstance(adversary, Generates):
            return {}
        alone = {
            "evaluate.metrics": ["path_length"],
            "evaluate.path_lengths": ["z_end"],
            "seed": self.config.seed - self.training.number,
        }
        config = recipes.change(self.config, alone)
        scored = training.evaluate(config, self.shards, list_checkpoints(self.run_dir)[0])
        scores: dict[str, float] = scored["scores"]
        return scores


class _Work:
    """Carries a contestant's training to a Prefect task. Prefect searches containers and data
    classes among a task's parameters, but not this class."""

    def __init__(self, contestant: Contestant, stopping: threading.Event, compare: str) -> None:
        self.contestant, self.stopping, self.compare = contestant, stopping, compare


@task(name="train and score", task_run_name="{training}", cache_policy=NO_CACHE)
def _contest(training: str, work: _Work) -> None:
    flow_run = runtime.flow_run.get_root_flow_run_id() or ""
    work.contestant.train(work.stopping, {TAG: work.compare, "prefect.flow_run_id": flow_run})


@stop_signals.one_term()
def race(contestants: Sequence[Contestant], slots: int, compare: str) -> bool:
    """Bring every training to the end of its budget, up to `slots` at once; False when cancelled.

    If one fails, its record keeps the message, and the others go on. An interrupt is raised
    again after the workers saved their checkpoints.
    """
    waiting = [contestant for contestant in contestants if not contestant.record.done]
    active: list[Contestant] = []
    stopping = threading.Event()
    board = Board(contestants)
    shown = artifacts.Progress("comparison-progress", "Of the budget of all trainings")
    next_question = 0.0
    lost = False

    def look() -> None:
        for contestant in active:
            for text in contestant.news():
                board.say(text)
            if contestant.running.trains and (stopping.is_set() or contestant.time_is_over()):
                contestant.running.stop()

    try:
        while active or (waiting and not stopping.is_set()):
            while waiting and len(active) < slots and not stopping.is_set():
                contestant = waiting.pop(0)
                contestant.keep(error=None)
                board.start(contestant)
                work = _Work(contestant, stopping, compare)
                contestant.running.start(partial(_contest, contestant.label, work))
                active.append(contestant)
            look()
            check_alive("the same command goes on")
            for contestant in [c for c in active if c.running.done]:
                look()
                active.remove(contestant)
                _settle(contestant, board)
            board.show(active)
            if time.monotonic() > next_question:
                next_question = time.monotonic() + _ASK_S
                shown(board.fraction())
                if artifacts.cancelled():
                    stopping.set()
            time.sleep(POLL_S)
        shown(board.fraction())
    except RayEnded:
        lost = True
        leave_ray([contestant.running for contestant in active])
        raise
    finally:
        if active and not lost:
            stopping.set()
            board.say("stopping: the workers save their checkpoints ...")
            save_and_end([contestant.running for contestant in active])
            board.say("the same command goes on")
        board.close()
    return not stopping.is_set()


def _settle(contestant: Contestant, board: Board) -> None:
    """Record how a training ended."""
    error = contestant.running.error()
    if error is None:
        board.say(f"{contestant.label}  {'done' if contestant.record.done else 'stopped'}")
    elif isinstance(error, Exception):  # the others go on
        contestant.keep(error=str(error) or type(error).__name__)
        board.say(f"{contestant.label}  failed: {contestant.record.error}")
    else:
        raise error


class Board:
    """Shows a person one bar for all trainings, and a line for everything that happens. Without a
    terminal, a line now and then tells how far all have come."""

    def __init__(self, contestants: Sequence[Contestant], stream: TextIO = sys.stderr) -> None:
        self._all, self._stream = contestants, stream
        self._began, self._first = time.monotonic(), self.fraction()
        self._line_due = 0.0
        self._bar = tqdm(
            total=100,
            desc="comparing",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
            dynamic_ncols=True,
            file=stream,
            disable=not stream.isatty(),
        )

    def fraction(self) -> float:
        """The share of all work that is done, from 0 to 1. One that failed counts as done."""
        shares = [1.0 if c.record.error else c.fraction() for c in self._all]
        return sum(shares) / len(shares)

    def start(self, contestant: Contestant) -> None:
        """Say that a training begins."""
        place = list(self._all).index(contestant) + 1
        self.say(f"{contestant.label}  {place} of {len(self._all)}, {contestant.record.run}")

    def show(self, active: Sequence[Contestant]) -> None:
        """Show how far the `active` trainings have come."""
        text = "; ".join(contestant.stands() for contestant in active)
        self._bar.n = round(100 * self.fraction(), 1)
        self._bar.set_postfix_str(f"{text}  {self._time_left()}", refresh=True)
        if self._bar.disable and active and time.monotonic() > self._line_due:
            self._line_due = time.monotonic() + _LINE_S
            self.say(f"{100 * self.fraction():3.0f}%  {text}  {self._time_left()}")

    def _time_left(self) -> str:
        forward = self.fraction() - self._first
        if forward < 0.01:
            return ""
        return in_words((time.monotonic() - self._began) * (1 - self.fraction()) / forward)

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        self._bar.write(text, file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Close the bar; it stays on the screen."""
        self._bar.close()
