"""The task of translating images to the other domain: both directions are scored.

    fd_efficientnet_lite0 (or fid)      the mean of the two directions, which decides which
                                        checkpoint is best
    fd_..._to_B                         Fréchet distance of the translated images of A to those of B
    fd_..._to_B_identity                Fréchet distance of the untranslated images of A to those of
                                        B; `_null`: of one half of B to the other
    kid_..._to_B, precision_..._to_B    the other measures that `evaluate.metrics` asks for
    cycle_error_A                       mean |A -> B -> A minus A|, pixels from 0 to 1
    truth_error_to_B                    mean |translation minus the true partner|, pixels from 0 to
                                        1, over held-out pairs; `_identity`: of untranslated images
    truth_distance_..._to_B             perceptual distance to the true partner, in the same way

Distances and other measures of features use the training images of both domains (N is the smaller
number of them, at most `evaluate.images`); cycles and pairs are measured on held-out images where
there are any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_train.adversary import DOMAINS, Domain, Translates
from gan_train.data.index import Index, Part
from gan_train.errors import UserError
from gan_train.images.pixels import to_float, to_uint8_at
from gan_train.metrics.collect import Generate
from gan_train.metrics.estimates import average, of_mean
from gan_train.metrics.perceptual import distance
from gan_train.metrics.real import read_places
from gan_train.metrics.scores import Estimate, flat, reference_name, split, towards
from gan_train.nn.collectives import all_sum
from gan_train.tasks.task import Setting, evaluator_of, extractor_of, perceptual_of, rounded

_MOST = 400  # images whose cycles and partners are measured, at most
_COLUMNS = 10
HELD_OUT: dict[Domain, Part] = {"A": "A_held_out", "B": "B_held_out"}


def other_than(domain: Domain) -> Domain:
    """The other of the two domains."""
    return "A" if domain == "B" else "B"


class Translation:
    """Draws and scores a generator that translates, in both directions."""

    def __init__(self, setting: Setting) -> None:
        assert isinstance(setting.adversary, Translates)
        self.adversary, self.shards = setting.adversary, setting.shards
        config = setting.config
        if "path_length" in config.evaluate.metrics:
            raise UserError("evaluate.metrics: path_length needs latents; leave it out")
        self.shown = {name: _part(setting.index, name) for name in DOMAINS}
        held_out = {name: setting.index.part(HELD_OUT[name]) for name in DOMAINS}
        self.evaluated = {name: held_out[name] or self.shown[name] for name in DOMAINS}
        second = config.data.second
        self.paired = (
            second is not None and second.pairs != "none" and None not in held_out.values()
        )
        images = min(config.evaluate.images, *(part.samples for part in self.shown.values()))
        self.share = setting.share
        self.extractor = extractor_of(setting)
        self.evaluators = {
            to: evaluator_of(setting, self.extractor, self.shown[to], images) for to in DOMAINS
        }
        self.metric = self.evaluators["B"].metric
        self.data = setting.index.content_hash
        self._perceptual = perceptual_of(setting) if self.paired else None
        self._identity: dict[str, float] | None = None

    # ---- images ----------------------------------------------------------------------------

    def _read(self, part: Index, positions: Tensor) -> Tensor:
        """Images uint8 [n, C, R, R] at these places of a part, on the device."""
        return read_places(part, self.shards, positions)[0].to(self.share.device)

    def _translated(self, pixels: Tensor, to: Domain) -> Tensor:
        """The translations uint8 [n, C, R, R] of images uint8 [n, C, R, R] to the domain `to`."""
        image = self.adversary.translate(to_float(pixels), to)
        return to_uint8_at(image, self.adversary.shape.resolution)

    @torch.inference_mode()
    def grid(self) -> tuple[Tensor, int]:
        """Images uint8 [n, C, R, R], and the number of columns. Each domain has rows for its
        images, the translations, the translations back and, where pairs are known, the true
        partners."""
        rows = []
        columns = min(_COLUMNS, *(part.samples for part in self.evaluated.values()))
        places = torch.arange(columns)
        for source in DOMAINS:
            to = other_than(source)
            images = self._read(self.evaluated[source], places)
            there = self._translated(images, to)
            rows += [images, there, self._translated(there, source)]
            if self.paired:
                rows.append(self._read(self.evaluated[to], places))
        return torch.cat(rows), columns

    # ---- measures --------------------------------------------------------------------------

    def measure(self) -> dict[str, Any]:
        scores: dict[str, float] = {}
        deciding: list[Estimate] = []
        with torch.inference_mode():
            for to in DOMAINS:
                found = self.evaluators[to].estimate(self._of_translated(to))
                stored = self.evaluators[to].beside_real(found)
                scores |= {towards(name, to): value for name, value in stored.items()}
                deciding += [found[self.metric]] if self.metric in found else []
            if self._identity is None:
                self._identity = self._measure_identity()
            scores |= self._identity
            scores |= self._errors()
        blocks: tuple[float, ...] = ()
        if deciding:
            both = average(deciding)
            scores, blocks = flat({self.metric: both}) | scores, both.blocks
        protocol = {**self.evaluators["B"].protocol(), "data": self.data}
        return {"scores": scores, "protocol": protocol, "blocks": rounded(blocks)}

    @torch.inference_mode()
    def rehearse(self, count: int) -> None:
        shape = self.adversary.shape
        noise = torch.randint(
            256, (count, shape.channels, shape.resolution, shape.resolution), dtype=torch.uint8
        )
        images = self._translated(noise.to(self.share.device), "B")
        if self.extractor is not None:
            self.extractor.features_and_layout(images)

    def _of_translated(self, to: Domain) -> Generate:
        source = self.shown[other_than(to)]
        return lambda positions: (self._translated(self._read(source, positions), to), None)

    def _measure_identity(self) -> dict[str, float]:
        """The Fréchet distances of untranslated images, which are the same for all checkpoints."""
        scores: dict[str, float] = {}
        for to in DOMAINS:
            source = self.shown[other_than(to)]

            def untranslated(
                positions: Tensor, source: Index = source
            ) -> tuple[Tensor, Tensor | None]:
                return self._read(source, positions), None

            found = self.evaluators[to].score(untranslated)
            if self.metric in found:
                scores[_of_identity(towards(self.metric, to))] = found[self.metric]
        return scores

    def _errors(self) -> dict[str, float]:
        """The mean errors by name. Each image is measured on one worker. Collective."""
        names = [f"cycle_error_{source}" for source in DOMAINS]
        suffix = "" if self._perceptual is None else self._perceptual.suffix
        for to in DOMAINS if self.paired else ():
            for what in (f"truth_error_to_{to}", f"truth_distance{suffix}_to_{to}"):
                names += [what, _of_identity(what)]
        shape = (len(names), _MOST)
        measured = torch.zeros(shape, dtype=torch.float64, device=self.share.device)
        filled = torch.zeros_like(measured)
        for source in DOMAINS:
            to = other_than(source)
            count = min(_MOST, self.evaluated[source].samples)
            for positions in self.share.positions(count):
                images = self._read(self.evaluated[source], positions)
                there = self._translated(images, to)
                found = {f"cycle_error_{source}": _error(self._translated(there, source), images)}
                if self._perceptual is not None:
                    truth = self._read(self.evaluated[to], positions)
                    errors, distances = f"truth_error_to_{to}", f"truth_distance{suffix}_to_{to}"
                    for ours, name_of in ((there, str), (images, _of_identity)):
                        apart = distance(self._perceptual, to_float(ours), to_float(truth))
                        found[name_of(errors)] = _error(ours, truth)
                        found[name_of(distances)] = apart.double()
                for name, values in found.items():
                    place = names.index(name), positions  # which no other worker measures
                    measured[place], filled[place] = values, 1.0
        all_sum(measured)
        all_sum(filled)
        means = {
            name: of_mean(values[there > 0])
            for name, values, there in zip(names, measured, filled, strict=True)
        }
        return flat({n: m if split(n)[1] is None else Estimate(m.value) for n, m in means.items()})


def _part(index: Index, name: Domain) -> Index:
    found = index.part(name)
    assert found is not None, "check_data has seen to that"
    return found


def _of_identity(name: str) -> str:
    """The name of a score's value for untranslated images."""
    return reference_name(name, "identity")


def _error(a: Tensor, b: Tensor) -> Tensor:
    """float64 [n]: the mean absolute difference of uint8 images, pixels counted from 0 to 1."""
    return (a.double() - b.double()).abs().mean(dim=(1, 2, 3)) / 255
