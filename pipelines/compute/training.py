"""Trains under Ray Train: starts and restarts the workers, and gives the trainer its runtime.

This file and `controller.py` are the only ones that import `ray.train`. The trainer writes its own
checkpoints into the run's folder, which all workers see, and goes on from the newest valid one, so
restarted workers only have to call the trainer again. Ray gets references to checkpoints, and
copies nothing.

With a workspace in a bucket, the workers see no folder of the driver's. Each machine has a folder
of its own for the run, and `gan_train/runs/shared.py` carries its files to the bucket and back.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gan_train.config import Config
from gan_train.data import shard_cache
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.files.store import Store, attach, origin_of
from gan_train.nn.collectives import any_worker, broadcast_text
from gan_train.runs import shared, stop_signals
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.claim import Claim, claimed
from gan_train.runs.shared import REFUSED as REFUSED
from gan_train.runs.shared import RESIZE as RESIZE
from gan_train.runs.shared import STOP as STOP
from gan_train.runs.shared import WORKER_LOG as WORKER_LOG
from gan_train.text import VisibleFormatter
from pipelines.compute import autoscaler, controller, room
from pipelines.compute.cluster import (
    RayEnded,
    check_alive,
    connected,
    environment_of_workers,
    gpus_wanted,
    needs,
    on_this_machine,
    threads_per_worker,
)
from pipelines.compute.metrics import Exporter, Origin, collected

Loop = Callable[[dict[str, Any]], Any]
_SNAPSHOT = "checkpoint_manager_snapshot.json"
SILENT_S = 60.0
"""A worker whose process does not answer for so many seconds is replaced: it was stopped, or its
machine does not run any more. `cluster.timeout_s` may be less."""

log = logging.getLogger(__name__)


class ControllerLost(RuntimeError):
    """The process of Ray Train's controller has died, and the workers with it."""


# ---- the workers' side -------------------------------------------------------------------------

_asked = threading.Event()
"""Set in a worker's process by a signal that asks it to end."""
_hearing = ExitStack()


def _hear() -> None:
    """Have the workers save and go on elsewhere when this one gets SIGTERM, as from a supervisor;
    the second one ends it at once. Only the main thread may set handlers, and training runs in
    another, so Ray calls this before."""
    _hearing.enter_context(stop_signals.heard(lambda number: _asked.set()))


@dataclass(frozen=True)
class Outcome:
    """What Ray Train reports: the newest checkpoint and the metrics that came with it."""

    checkpoint: Path | None
    metrics: dict[str, float]
    value: Any = None
    """What rank 0's function returned."""


class RayRuntime:
    """A Ray Train worker, as the trainer sees it (`gan_train.runs.runtime.Runtime`)."""

    def __init__(self, run_dir: Path) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.run_dir = run_dir
        self.in_bucket = origin_of(run_dir) is not None
        self.outbox: shared.Outbox | None = None
        self.claim: Claim | None = None
        self.moves = False
        """Whether a node or a worker is about to be taken away, so they must go on elsewhere."""
        self._hears = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._exporter: Exporter | None = None

    @contextmanager
    def exporting(self, recipe: str) -> Iterator[None]:
        """Export what is reported during the block as metrics, where Ray collects metrics."""
        if not collected():
            yield
            return
        self._exporter = Exporter(Origin(self.run_dir, recipe, self.rank, self.world_size))
        with self._exporter.repeating():
            yield

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Hand rank 0's metrics, and a reference to its checkpoint, to Ray. All workers wait here.

        Without a checkpoint Ray Train is not told: it would not keep the report, the event log has
        the curves, and each report makes the workers wait for Ray's controller. Nor is it with a
        workspace in a bucket, because it takes only references to what lies in its own storage.
        """
        if checkpoint is None:
            if self._exporter:
                self._exporter.tick(metrics)
            return
        if self._exporter:
            self._exporter.checkpoint(metrics)
        if self.in_bucket:
            return
        import ray.train

        given = ray.train.Checkpoint.from_directory(str(checkpoint)) if self.rank == 0 else None
        ray.train.report(
            metrics,
            checkpoint=given,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )

    def should_stop(self) -> bool:
        """True once the file STOP or RESIZE stands in the run's folder, Ray has announced that a
        node of the workers will be taken away, or a signal has asked this worker to end. All
        workers call this at the same steps, because Ray gives all of them one answer. Raises
        `shared.Superseded` when another process has taken the run over."""
        if self.outbox is not None:
            self.outbox.check()
        if self.claim is not None:
            self.claim.check()
        self.moves = _asked.is_set()
        if self._hears:
            import ray.train

            # all workers ask, whatever this one knows
            self.moves |= ray.train.get_preemption_info() is not None
        return self.moves or any((self.run_dir / name).exists() for name in (STOP, RESIZE))


@contextmanager
def _worker(settings: dict[str, Any]) -> Iterator[tuple[Config, RayRuntime, Path]]:
    """Prepare a worker, also a restarted one, and yield its configuration, its runtime and the
    folder of the shards."""
    import ray.train

    config = Config.model_validate(settings["config"])
    run_dir, shards = (Path(settings[name]) for name in ("run_dir", "shards"))
    if config.store is not None:
        store, workspace = Store(config.store), config.workspace
        # rank 0 writes the run, and the others only read the checkpoint that it goes on from
        role = "first" if ray.train.get_context().get_world_rank() == 0 else "others"
        run_dir = workspace / "workers" / run_dir.name / role
        shards = shard_cache.open_folder(
            workspace / "shards" / shards.name,
            store / f"shards/{shards.name}",
            config.data.node_cache_gb,
        )
        attach(run_dir, store / settings["run"])
    runtime = RayRuntime(run_dir)
    sending: AbstractContextManager[Any] = nullcontext()
    if config.store is not None:
        chosen = shared.bring_to_train(run_dir) if runtime.rank == 0 else ""
        chosen = broadcast_text(chosen, runtime.device)
        if runtime.rank == 0:
            sending = runtime.outbox = shared.Outbox(run_dir)
        else:
            shared.bring_one(run_dir, chosen)
    _log_to(run_dir / WORKER_LOG, runtime.rank)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with sending:
        try:
            yield config, runtime, shards
        except (UserError, FloatingPointError) as error:  # a restart would only repeat it
            write_aside(run_dir / REFUSED, str(error).encode())
            if (origin := origin_of(run_dir)) is not None:  # only rank 0 sends its folder
                origin.write(REFUSED, str(error).encode())
            raise


def _train(settings: dict[str, Any]) -> bool:
    """The training function of Ray Train; returns whether the workers ended to go on elsewhere."""
    from gan_train.training.trainer import train

    with ExitStack() as held:
        config, runtime, shards = held.enter_context(_worker(settings))
        held.enter_context(runtime.exporting(config.name))
        at = (os.getpid(), socket.gethostname())
        logging.getLogger("gan_train").info("process %d of %s", *at)
        if runtime.rank == 0 and not runtime.in_bucket:
            runtime.claim = held.enter_context(claimed(runtime.run_dir, settings["owner"]))
        train(config, Index.load(shards), shards, runtime)
        return any_worker(runtime.moves, runtime.device)


def _evaluate(settings: dict[str, Any]) -> dict[str, Any]:
    """The scores and the protocol of a checkpoint; Ray hands back what rank 0 returns."""
    from gan_train.training.scoring import evaluate_checkpoint

    with _worker(settings) as (config, runtime, shards):
        checkpoint = Path(settings["checkpoint"])
        if config.store is not None:
            checkpoint = runtime.run_dir / checkpoint.name
            shared.bring_folder(runtime.run_dir, checkpoint.name)
        return evaluate_checkpoint(config, Index.load(shards), shards, checkpoint, runtime)


def _log_to(path: Path, rank: int) -> None:
    """Send this worker's messages to a file that the driver follows."""
    handler = logging.FileHandler(path, encoding="utf-8")
    layout = f"%(asctime)s %(levelname)s worker {rank}: %(message)s"
    handler.setFormatter(VisibleFormatter(layout))
    logger = logging.getLogger("gan_train")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


# ---- the driver's side -------------------------------------------------------------------------


def clear(run_dir: Path) -> None:
    """Remove the files STOP, RESIZE and REFUSED of an earlier attempt, which would end a new
    one."""
    withdraw(run_dir, STOP, RESIZE, REFUSED)


def withdraw(run_dir: Path, *names: str) -> None:
    """Remove these files from the run's folder, and from the bucket that it may lie in."""
    store = origin_of(run_dir)
    for name in names:
        (run_dir / name).unlink(missing_ok=True)
        if store is not None:
            store.delete(name)


def unchanged(run_dir: Path) -> Outcome:
    """The outcome of a training that was stopped before it began."""
    return Outcome(next(iter(list_checkpoints(run_dir)), None), {})


def fit(
    config: Config, shards: Path, run_dir: Path, *, restart: bool = True, owner: str | None = None
) -> Outcome:
    """Train on `config.cluster.workers` workers until the schedule ends or STOP appears, or until
    Ray announces that a node will be taken away: then the outcome's value is True, and
    `elastic.fit` goes on.

    `shards` and `run_dir` are absolute paths that every worker sees. A lost worker restarts the
    group from the newest valid checkpoint, at most `config.cluster.max_failures` times, and not at
    all without `restart`; so does, as often, a lost controller. `owner` names the training of which
    this is an attempt (`gan_train/runs/claim.py`). May be called from any thread, after `clear`.

    Raises UserError for a mistake that a restart cannot mend, and RuntimeError with the workers'
    errors when the restarts are used up.
    """
    settings = {"shards": str(shards), "run_dir": str(run_dir), "owner": owner or uuid.uuid4().hex}
    retries = config.cluster.max_failures if restart else 0
    while True:
        try:
            return _launch(_train, config, settings, run_dir, restart)
        except ControllerLost as error:
            if not retries or (run_dir / STOP).exists():
                raise
            retries -= 1
            log.warning("%s; going on from the last checkpoint", error)


def evaluate(config: Config, shards: Path, checkpoint: Path) -> dict[str, Any]:
    """Score a checkpoint, or a downloaded generator, on the workers; returns `scores` and
    `protocol`.

    Raises UserError when the checkpoint or generator was made for other data.
    """
    settings = {"shards": str(shards), "checkpoint": str(checkpoint)}
    storage = config.workspace / "evaluate" / f"{checkpoint.name}-{uuid.uuid4().hex[:8]}"
    storage.mkdir(parents=True)
    try:
        if config.store is not None:
            attach(storage, Store(config.store) / f"evaluate/{storage.name}")
            shared.send_folder(storage, checkpoint)
        scored = _launch(_evaluate, config, settings | {"run_dir": str(storage)}, storage)
    finally:
        if config.store is not None:
            shared.remove(storage)
        shutil.rmtree(storage)
    assert isinstance(scored.value, dict)
    return scored.value


def _launch(
    loop: Loop, config: Config, settings: dict[str, str], run_dir: Path, restart: bool = True
) -> Outcome:
    """Run `loop` on all workers. With `restart`, wait for room while others use it, also when they
    have taken that of a worker that was lost; without it, raise NoRoom then."""
    while True:
        (run_dir / _SNAPSHOT).unlink(missing_ok=True)  # it may name deleted checkpoints
        try:
            return _attempt(loop, config, settings, run_dir, restart)
        except room.NoRoom as error:
            if not restart:
                raise
            log.info("others were faster: %s", error)


def _attempt(
    loop: Loop, config: Config, settings: dict[str, str], run_dir: Path, restart: bool
) -> Outcome:
    """Run `loop` on all workers by Ray Train. Its storage is the run's folder, or with a workspace
    in a bucket a folder of the controller's machine: there is nothing to store, but some records of
    a run that only this attempt needs. Raises NoRoom."""
    storage, name = run_dir.parent, run_dir.name
    following: AbstractContextManager[Any] = nullcontext()
    if config.store is not None:
        settings = settings | {"run": run_dir.relative_to(config.workspace).as_posix()}
        storage = Path(tempfile.gettempdir()) / "ray" / f"gan-train-{os.getuid()}"
        name = f"{run_dir.name}-{uuid.uuid4().hex[:8]}"
        following = shared.Inbox(run_dir)
    with connected(config.cluster):
        import ray.exceptions
        import ray.train
        import ray.train.torch

        # type checkers see the classes of Ray Train v1, but v2 is what runs
        v2: Any = ray.train
        use_gpu = gpus_wanted(config.cluster)
        if restart and not room.wait(config.cluster, use_gpu, (run_dir / STOP).exists):
            return unchanged(run_dir)
        threads = threads_per_worker(config, os.cpu_count() or 1)
        local = on_this_machine(config.cluster)
        resume = f"go on with --resume {run_dir.name}"
        again = resume if loop is _train else "give the command again"

        def look() -> None:
            if not ray.is_initialized():
                raise RuntimeError("Ray was ended while this training went on")
            check_alive(again)

        def check_room() -> None:
            if local:
                check_alive(again, ask=True)
            room.check(config.cluster, use_gpu)

        silent_s = min(SILENT_S, config.cluster.timeout_s)
        trainer = controller.trainer_class(
            silent_s, look if local else None, not (local or autoscaler.is_absent())
        )(
            loop,
            train_loop_config=settings | {"config": config.model_dump(mode="json")},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.cluster.workers,
                use_gpu=use_gpu,
                resources_per_worker=needs(config.cluster, use_gpu),
                placement_strategy=config.cluster.placement.upper(),
            ),
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=int(config.cluster.timeout_s)
            ),
            run_config=v2.RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=v2.FailureConfig(
                    max_failures=config.cluster.max_failures if restart else 0,
                    controller_failure_limit=10 if restart else 0,
                    max_preemption_failures=-1 if restart else 0,
                ),
                worker_runtime_env={
                    "env_vars": environment_of_workers(local) | {"OMP_NUM_THREADS": str(threads)}
                },
                callbacks=[
                    controller.after_failures(run_dir, config.name),
                    controller.at_start(run_dir, check_room, _hear),
                ],
                logging_config=v2.LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            with following:
                result: Any = trainer.fit()
        except ray.exceptions.RayActorError as error:
            check_alive(again, ask=True)
            room.give_back(run_dir)
            reason = str(error).splitlines()[0]
            raise ControllerLost(f"Ray Train's controller died: {reason}") from error
        except ray.train.TrainingFailedError as error:
            cause = getattr(error, "controller_failure", None)
            if isinstance(cause, room.NoRoom | RayEnded):
                raise cause from None  # a user's mistake has no cause, or its task is tried again
            refused = run_dir / REFUSED
            if refused.exists():
                raise UserError(refused.read_text(encoding="utf-8")) from error
            more = f"more in {run_dir / WORKER_LOG}"
            raise RuntimeError(f"training failed: {error}\n{more}") from error
        path = Path(result.checkpoint.path) if result.checkpoint else None
        return Outcome(path, result.metrics or {}, result.return_value)
