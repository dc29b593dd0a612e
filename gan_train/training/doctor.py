"""Looks for signs of disease while a training goes on, tells of them, and says what follows.

Rank 0 has the event log, and so the diagnosis; all workers get what follows of it. What is told
stands in the log as an event `diagnosis` whenever the names of what a run has change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gan_train.diagnosis.signs import PLATEAU, Diagnosis, diagnose
from gan_train.nn.collectives import broadcast_text
from gan_train.runs import checkpoint
from gan_train.runs.events import Event, EventLog, EventReader, present, read_with_offsets
from gan_train.sections import TrainConfig

log = logging.getLogger(__name__)

SHIFT = 1 << 20
"""So many turns of the lanes lie between the data of a training and of one that was rolled back."""


class Sick(FloatingPointError):
    """A training has a disease that spoils its generator, since `since` images."""

    def __init__(self, text: str, since: int) -> None:
        super().__init__(text)
        self.since = since


@dataclass(frozen=True)
class Verdict:
    """What follows of a look. `acute` are words for a disease that the training must not go on
    with, and `since` the images at which it began; with `enough`, nothing gets better any more."""

    acute: str = ""
    since: int = 0
    enough: bool = False


class Doctor:
    """Looks at one run. Without a log, on other ranks than 0, it takes over what rank 0 finds."""

    def __init__(
        self, train: TrainConfig, run_dir: Path, events: EventLog | None, device: torch.device
    ) -> None:
        self._train, self._run_dir, self._device = train, run_dir, device
        self._log = events
        self._reader = EventReader(run_dir)
        self._events: list[Event] = []  # without cuts
        self._standing: set[str] = set()  # the names of what the run has

    def begin(self, nimg: int) -> int:
        """Begin, or go on, after `nimg` images; returns how often the run was rolled back.
        Collective."""
        back = 0
        if self._log is not None:
            self._standing = {one.name for one in self._diagnose(nimg)}
            # those that later cuts have abandoned count as well
            back = sum(e["kind"] == "rolled_back" for e, _ in read_with_offsets(self._run_dir))
        return int(broadcast_text(str(back), self._device))

    def look(self, nimg: int) -> Verdict:
        """Tell what is new since the last look. Collective, and every worker gets the same."""
        verdict = Verdict()
        if self._log is not None:
            found = self._diagnose(nimg)
            self._tell(nimg, found)
            acute = [one for one in found if one.kind.acute]
            if acute and self._train.on_sickness != "warn":
                worst, since = acute[0], min(one.since for one in acute)
                verdict = Verdict(worst.sentence(), since)
            elif self._train.patience_kimg is not None:
                verdict = Verdict(enough=any(one.name == PLATEAU for one in found))
        if self._train.on_sickness == "warn" and self._train.patience_kimg is None:
            return verdict
        return Verdict(**json.loads(broadcast_text(json.dumps(verdict.__dict__), self._device)))

    def way_back(self, sick: FloatingPointError, nimg: int) -> bool:
        """Whether training goes on from a checkpoint before a disease that was noticed at `nimg`
        images. Those after it are then abandoned, and the log tells so. Collective."""
        chosen = ""
        if self._log is not None and self._train.on_sickness == "roll_back":
            since = sick.since if isinstance(sick, Sick) else nimg
            events = list(read_with_offsets(self._run_dir))
            before = sum(event["kind"] == "rolled_back" for event, _ in events)
            if before < self._train.roll_backs:
                chosen = self._healthy_before(since)
            if chosen:
                log.warning(
                    "ROLLED BACK to %.4g kimg, time %d of at most %d, with other data: %s",
                    *(int(chosen) / 1000, before + 1, self._train.roll_backs, sick),
                )
                checkpoint.abandon_after(self._run_dir, int(chosen))
                self._log.append("rolled_back", int(chosen), number=before + 1, why=str(sick))
        return bool(broadcast_text(chosen, self._device))

    def diverged(self, nimg: int, what: str) -> None:
        """Note that numbers were not finite after `nimg` images."""
        if self._log is not None:
            self._log.append("diverged", nimg, what=what)
            self._tell(nimg, self._diagnose(nimg))

    def _healthy_before(self, since: int) -> str:
        for folder in checkpoint.list_checkpoints(self._run_dir):
            if int(folder.name) < since and checkpoint.find_damage(folder) is None:
                return folder.name
        return ""

    def _diagnose(self, nimg: int) -> list[Diagnosis]:
        self._events = present([*self._events, *self._reader.new()])
        until = (event for event in self._events if event["nimg"] <= nimg)
        return diagnose(until, self._train.patience_kimg)

    def _tell(self, nimg: int, found: Sequence[Diagnosis]) -> None:
        names = {one.name for one in found}
        for one in found:
            if one.name not in self._standing:
                log.warning("DIAGNOSIS %s", one.sentence())
        if names != self._standing:
            assert self._log is not None
            told = [{"name": d.name, "since": d.since, "evidence": d.evidence} for d in found]
            self._log.append("diagnosis", nimg, found=told)
        self._standing = names
