"""The training loop, which all families share. `Trainer.step` is a whole training step."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gan_train.adversary import Batch, Clock, OptimizerSettings, Stage
from gan_train.config import Config
from gan_train.data.feed import Feed
from gan_train.data.index import Index
from gan_train.data.loader import LoadedBatch
from gan_train.diagnosis import page
from gan_train.images.pixels import to_float
from gan_train.metrics.scores import degenerate
from gan_train.nn.collectives import any_worker, assert_identical, barrier
from gan_train.rng import BatchRandom, derive
from gan_train.runs import checkpoint
from gan_train.runs.environment import environment
from gan_train.runs.events import EventLog
from gan_train.runs.ledger import Ledger, fingerprints
from gan_train.runs.runtime import Runtime
from gan_train.runs.warm_start import start_from
from gan_train.training import precision
from gan_train.training.averaging import GradientAverage
from gan_train.training.curves import Curves, NotFinite, Place, peak_memory_gib
from gan_train.training.doctor import SHIFT, Doctor, Sick
from gan_train.training.memory import keep_freed_memory, to_device
from gan_train.training.micro_batch import MicroBatch
from gan_train.training.moving_average import AveragedWeights, decay
from gan_train.training.optimizers import (
    apply_settings,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    parameters_of,
)
from gan_train.training.profiling import StepProfiler
from gan_train.training.schedule import check, crossed, schedule_end, stage_at
from gan_train.training.scoring import Scorer

log = logging.getLogger(__name__)

KEYS_TOLD = 16  # of a batch that diverged, so many samples are named
STOP_POLL_STEPS = 8  # how often the workers ask each other whether to stop


def train(config: Config, index: Index, shards: Path, runtime: Runtime) -> bool:
    """Train from the newest valid checkpoint in `runtime.run_dir`, or from the start. Returns
    whether the schedule came to its end; else someone asked to stop.

    Every worker calls this. Raises UserError when the configuration does not fit the data or the
    number of workers, FloatingPointError on divergence.
    """
    check(config, index.image_shape, runtime.world_size)
    trainer = Trainer(config, index, shards, runtime)
    with trainer.profiler:
        return trainer.run()


class Trainer:
    """Trains one generator. All workers have the same state, and different shares of each batch."""

    def __init__(self, config: Config, index: Index, shards: Path, runtime: Runtime) -> None:
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        config = precision.settle(config, runtime)
        self.config, self.runtime, self.index = config, runtime, index
        self.device = runtime.device
        if self.device.type == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.deterministic = True  # on a GPU, convolutions give the same bits again

        # Networks: the same random start on every worker
        torch.manual_seed(derive(config.seed, "weights"))
        self.adversary = config.family.build(index.image_shape, config.train.batch)
        dtype = torch.float64 if config.train.precision == "float64" else torch.float32
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.dtype, self.layout = dtype, layout
        self.adversary.to(self.device, dtype)
        self.adversary.to(memory_format=layout)  # type: ignore[call-overload]
        self.averaged = AveragedWeights(self.adversary)
        self.specs = self.adversary.optimizers()
        self.optimizers = self.fresh_optimizers()
        self.average = GradientAverage(config.train.reduce_precision)
        self.stages = self.adversary.stages()
        self.end = schedule_end(config, self.stages)
        self.clock = self.trained = Clock()  # the clock of the next step, and that of the last one
        self.stage_name = ""  # the stage that the optimizers' moments belong to

        # Data: this worker's share of an order that is the same for any number of workers
        ranks = runtime.rank, runtime.world_size
        self.loader = Feed(config.data, config.seed, index, shards, self.adversary, *ranks)
        self.curves = Curves(self.device)
        self.scorer = Scorer(config, index, shards, runtime, self.averaged.adversary)
        self.events = EventLog(runtime.run_dir) if runtime.rank == 0 else None
        self.ledger = Ledger(runtime.run_dir) if runtime.rank == 0 else None
        self.doctor = Doctor(config.train, runtime.run_dir, self.events, self.device)
        self.enough = False  # nothing gets better any more
        self.shift = 0  # where the data of a run that was rolled back begin
        profiled = config.train.profile_steps if runtime.rank == 0 else 0
        self.profiler = StepProfiler(profiled, runtime.run_dir, self.device)

    # ---- the loop ------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train until the schedule ends, nothing gets better (`train.patience_kimg`), or someone
        asks to stop; returns False for the last. A run that fell ill is rolled back if
        `train.on_sickness` says so."""
        while True:
            try:
                self.resume()
                stopped = self.train()
                break
            except FloatingPointError as error:
                if not self.doctor.way_back(error, self.clock.nimg):
                    self.write_page()
                    raise
                self.optimizers, self.curves = self.fresh_optimizers(), Curves(self.device)
        if not stopped:
            self.scorer.report_best()
        if self.events:
            self.events.append("end", self.clock.nimg, status="stopped" if stopped else "finished")
        self.write_page()
        return not stopped

    def train(self) -> bool:
        """Train stage by stage; returns whether someone has asked to stop."""
        stopped = False
        while self.clock.nimg < self.end and not (stopped or self.enough):
            stage, stage_end = stage_at(self.stages, self.clock.nimg, self.end)
            self.enter(stage)
            self.start_timer()
            start = self.clock.nimg + self.shift
            batches = self.loader.batches(start, stage.batch, stage.resolution)
            with contextlib.closing(batches):
                for loaded in batches:
                    before = self.clock.nimg
                    self.step(stage, loaded)
                    self.profiler.step()
                    over = self.clock.nimg >= stage_end
                    stopped = self.asked_to_stop()
                    self.housekeeping(before, stage, over, stopped)
                    if over or stopped or self.enough:
                        break
        return stopped

    def step(self, stage: Stage, loaded: LoadedBatch) -> None:
        """Train on one global batch: every phase that is due updates its networks once."""
        self.adversary.advance(self.clock)
        self.adversary.update_statistics(self.clock)
        torch.manual_seed(derive(self.config.seed, "torch", self.clock.nimg, self.runtime.rank))
        micro_batches = list(self.micro_batches(loaded))

        due = [phase for phase in stage.phases if self.clock.step % phase.every == 0]
        for phase in due:
            self.curves.place = Place(self.clock.step, self.clock.nimg, stage.batch, phase.name)
            # Only the phase's networks get gradients
            parameters = parameters_of(self.adversary, self.specs[phase.optimizer])
            self.adversary.requires_grad_(False)
            for p in parameters:
                p.requires_grad_(True)

            # Losses and gradients, a micro-batch at a time. The losses of a phase that is due every
            # n steps count n times. During the last backward pass the workers average gradients,
            # and in the last phase running statistics, which the losses have measured by then
            statistics = self.adversary.running_buffers() if phase is due[-1] else []
            key = f"{stage.name}/{phase.name}"
            averaging = self.average.of_backward(key, parameters, statistics)
            for micro in micro_batches:
                rng = BatchRandom(self.config.seed, phase.name, micro.positions)
                with self.autocast():
                    losses = phase.loss(micro.seen_by(phase), rng, self.clock)
                micro.keep(phase, losses.leaves)
                terms = {name: phase.every * term for name, term in losses.terms.items()}
                loss = torch.stack(list(terms.values())).sum().div(len(micro_batches))
                with averaging if micro is micro_batches[-1] else contextlib.nullcontext():
                    loss.backward()
                for name, value in terms.items():
                    self.curves.add(f"loss/{name}", value)
                for name, value in losses.metrics.items():
                    self.curves.add(name, value)

            # The same mean gradient on every worker, clipped, then one update
            norm = gradient_norm(parameters)
            self.curves.add(f"gradient_norm/{phase.name}", norm)
            settings = self.settings(phase.optimizer, stage)
            clip_gradients(parameters, norm, settings.clip_norm)
            optimizer = self.optimizers[phase.optimizer]
            apply_settings(optimizer, settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        # Clock, moving average
        self.trained = self.clock
        self.clock = Clock(self.clock.step + 1, self.clock.nimg + stage.batch)
        t = self.config.train
        self.averaged.update(decay(stage.batch, self.clock.nimg, t.ema_kimg * 1000, t.ema_ramp))

    def housekeeping(self, before: int, stage: Stage, over: bool, stopped: bool) -> None:
        """Write curves, samples, checkpoints and scores when they are due by the clock, and a
        checkpoint when training is stopped."""
        t, now = self.config.train, self.clock.nimg
        finished = now >= self.end
        save = crossed(before, now, t.checkpoint_kimg) or (over and stage.milestone) or finished
        if crossed(before, now, t.tick_kimg) or save:
            self.tick(stage)
        elif stopped:
            self.finite(self.curves.means)  # what has diverged is not saved
        if crossed(before, now, t.sample_kimg) or save:
            self.draw_samples()
        if save or stopped:
            self.save(score=not stopped)
        self.start_timer(reset=save or stopped)

    # ---- its parts -----------------------------------------------------------------------------

    def settings(self, optimizer: str, stage: Stage) -> OptimizerSettings:
        """The settings of the named optimizer at this step."""
        declared = self.specs[optimizer].settings
        return self.adversary.settings(optimizer, declared, stage, self.clock)

    def micro_batches(self, loaded: LoadedBatch) -> Iterator[MicroBatch]:
        """This worker's share of a global batch, on the device, in `train.accumulate` parts."""
        parts = self.config.train.accumulate
        whole: Batch = {}
        for name, pixels in {"image": loaded.images, **loaded.beside}.items():
            image = to_float(to_device(self.device, pixels), self.dtype)
            whole[name] = image.contiguous(memory_format=self.layout)  # [N, C, H, W]
        if loaded.labels is not None:
            whole["label"] = to_device(self.device, loaded.labels)
        cut = {name: tensor.chunk(parts) for name, tensor in whole.items()}
        for i, positions in enumerate(to_device(self.device, loaded.positions).chunk(parts)):
            yield MicroBatch({name: tensors[i] for name, tensors in cut.items()}, positions)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """A context that computes matrix products and convolutions in bf16 if `train.precision` is
        bf16; weights stay float32."""
        on = self.config.train.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def enter(self, stage: Stage) -> None:
        """Begin a stage, with new optimizers where the family asks for them. A run that is resumed
        within a stage keeps its optimizers."""
        if stage.fresh_optimizers and stage.name != self.stage_name:
            self.optimizers = self.fresh_optimizers()
        self.stage_name = stage.name

    def fresh_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers without moments, by name."""
        return {name: build_optimizer(self.adversary, spec) for name, spec in self.specs.items()}

    def resume(self) -> None:
        """Load the newest valid checkpoint, and score it if it was not scored yet.

        A run without a checkpoint begins with new networks, or with those of `train.start_from`.
        """
        passed_over: dict[str, str] = {}
        folder = checkpoint.newest_valid(self.runtime.run_dir, passed_over)
        barrier()  # all workers choose the checkpoint before rank 0 marks later ones
        if self.runtime.rank == 0:
            checkpoint.abandon_after(self.runtime.run_dir, int(folder.name) if folder else 0)
        if folder is None:
            if self.events:
                here = environment(self.runtime, self.config.train.precision)
                told = {"precision": here["precision"], "device": here["device"]}
                self.events.append("start", 0, **told, **self.about(), environment=here)
            self.open_ledger()
            if self.config.train.start_from is not None:
                averaged = self.averaged.state_dict()
                start_from(self.config.train.start_from, self.adversary, averaged)
            self.consult()
            return
        state, averaged = checkpoint.load(
            folder, self.adversary, self.optimizers, self.config, self.index.content_hash
        )
        self.clock, self.stage_name = state.clock, state.stage
        self.curves.restore(state.curves, self.runtime.rank, self.runtime.world_size)
        self.averaged.load_state_dict(averaged)
        if self.ledger:
            self.ledger.check(folder, self.clock)
        self.open_ledger()
        if self.events and passed_over:
            self.events.append("passed_over", self.clock.nimg, checkpoints=passed_over)
        log.info("resumed from %s at %.1f kimg", folder, self.clock.nimg / 1000)
        self.consult()
        # scoring may take minutes, but nobody else would score the last checkpoint of a schedule
        asked = any_worker(self.runtime.should_stop(), self.device)
        if self.clock.nimg >= self.end or not asked:
            self.score_checkpoint(folder)

    def open_ledger(self) -> None:
        """Have the ledger tell what is trained from here on, and on what."""
        if self.ledger:
            here = environment(self.runtime, self.config.train.precision)
            self.ledger.start(self.clock.nimg, self.config, self.index.content_hash, here)

    def consult(self) -> None:
        """Let the doctor begin; a run that was rolled back sees other data each time."""
        turn = self.config.data.lanes * self.adversary.grain
        self.shift = self.doctor.begin(self.clock.nimg) * SHIFT * turn

    def about(self) -> dict[str, int]:
        """What the signs of disease need to know of the data."""
        index = self.index
        return {
            "images": index.samples,
            "classes": len(index.classes),
            "resolution": index.resolution,
        }

    def heed(self) -> None:
        """Look for signs of disease; raises `Sick` for one with which training must not go on."""
        verdict = self.doctor.look(self.clock.nimg)
        self.enough |= verdict.enough
        if verdict.acute:
            raise Sick(
                f"training is stopped: {verdict.acute}. To go on all the same, resume with "
                "train.on_sickness=warn",
                verdict.since,
            )

    def asked_to_stop(self) -> bool:
        """Whether any worker was asked to stop; all workers get the same answer."""
        if self.runtime.world_size > 1 and self.clock.step % STOP_POLL_STEPS:
            return False
        return any_worker(self.runtime.should_stop(), self.device)

    def start_timer(self, reset: bool = True) -> None:
        """If `reset`, measure images per second from now on, without the time of saving before."""
        if reset:
            self.timer, self.timed_from = time.perf_counter(), self.clock.nimg

    def tick(self, stage: Stage) -> None:
        """Check that all workers have the same weights, and report the curves to log and engine."""
        assert_identical(self.adversary.parameters(), self.device)
        values = self.finite(self.curves.flush)
        seconds = time.perf_counter() - self.timer
        values["images_per_second"] = (self.clock.nimg - self.timed_from) / seconds
        values["memory_gib"] = peak_memory_gib(self.device)
        values |= self.adversary.status() | self.adversary.statistics()
        for name in self.optimizers:
            values[f"learning_rate/{name}"] = self.settings(name, stage).lr
        if self.events and self.ledger:
            logged = self.events.append("metrics", self.clock.nimg, values=values)
            (following,) = self.loader.keys(self.clock.nimg + self.shift, 1)
            networks = self.adversary.state_dict()
            self.ledger.weights(self.clock, following, networks, logged["values"])
        self.runtime.report({"nimg": self.clock.nimg, **values}, None)
        self.heed()
        self.start_timer()

    def finite(self, curves: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The values of the curves. Raises FloatingPointError, which tells the step that went wrong
        and its images, where some are not finite."""
        try:
            return curves()
        except NotFinite as error:
            first, run = error.first, self.runtime.run_dir.name
            self.doctor.diverged(self.clock.nimg, str(error))
            keys = self.loader.keys(first.nimg + self.shift, min(first.batch, KEYS_TOLD))
            raise FloatingPointError(
                f"training diverged: {error}, first at step {first.step} in phase {first.phase}, "
                f"on the {first.batch} images from position {first.nimg} on (samples "
                f"{', '.join(keys)}{', ...' if len(keys) < first.batch else ''}). This state is "
                "not saved, and the checkpoints before it stand. To repeat it bit for bit, resume "
                f"{run} with train.total_kimg={(first.nimg + first.batch) / 1000:g}. To go on, "
                "lower the learning rate or raise the gradient penalty, declare that in "
                "train.allow_changed, and resume"
            ) from None

    def draw_samples(self) -> None:
        """Write a grid of the averaged generator's images, from the same latents every time."""
        if self.events:
            path = self.scorer.draw(self.trained, self.clock.nimg)
            relative = str(path.relative_to(self.runtime.run_dir))
            self.events.append("image", self.clock.nimg, path=relative)

    def save(self, score: bool) -> None:
        """Write a checkpoint, on rank 0, and score it if `score`."""
        folder = self.runtime.run_dir / checkpoint.FOLDER / f"{self.clock.nimg:012d}"
        state = self.adversary, self.averaged.state_dict(), self.optimizers
        try:
            checkpoint.check_finite(*state)  # on all workers, which have the same state
        except FloatingPointError as error:
            self.doctor.diverged(self.clock.nimg, str(error))
            raise
        curves = self.curves.pending()
        if self.ledger:
            parts = fingerprints(*state)
            chain = self.ledger.checkpoint(self.clock, parts)
            checkpoint.save(
                self.runtime.run_dir,
                *state,
                self.config,
                self.index.content_hash,
                self.clock,
                self.trained,
                self.stage_name,
                chain,
                curves,
            )
        barrier()
        if score:
            self.score_checkpoint(folder)

    def score_checkpoint(self, folder: Path) -> None:
        """Score a checkpoint unless that is done, report to log and engine, and thin older ones."""
        scored = self.scorer.score(folder)
        if self.events and self.ledger:
            path = str(folder.relative_to(self.runtime.run_dir))
            more = {"path": path, "precision": self.config.train.precision}
            if why := degenerate(scored["scores"]):
                log.error("DEGENERATE CHECKPOINT %s: %s; it is never the best one", path, why)
                more["degenerate"] = why
            level = self.averaged.adversary.status()
            event = self.events.append("checkpoint", self.clock.nimg, **scored | more | level)
            self.ledger.scores(self.clock.nimg, event["scores"])
            best = self.scorer.best(self.runtime.run_dir)
            checkpoint.prune(self.runtime.run_dir, self.config.train.keep_checkpoints, best)
        self.runtime.report({"nimg": self.clock.nimg, **scored["scores"]}, folder)
        try:
            self.heed()
        finally:
            self.write_page()

    def write_page(self) -> None:
        """Write the page that shows the run (`diagnosis/page.py`), on rank 0."""
        if self.events:
            page.write(self.runtime.run_dir, self.config.train.patience_kimg)
