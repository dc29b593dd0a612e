"""Trains under Ray Train: starts and restarts the workers, and gives the trainer its runtime.

This is the only file that imports `ray.train`. The trainer writes its own checkpoints into the
run's folder, which all workers see, and goes on from the newest valid one, so restarted workers
only have to call the trainer again. Ray gets references to checkpoints, and copies nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from pipelines.compute.cluster import address_of, connected, environment_of_workers, gpus_wanted

if TYPE_CHECKING:
    from ray.train import UserCallback

STOP = "STOP"
"""A file of this name in the run's folder asks the training to save a checkpoint and end."""
REFUSED = "REFUSED"
"""A file of this name in the run's folder holds the message of an error that a restart would only
repeat: a user's mistake, or numbers that are not finite."""
WORKER_LOG = "workers.log"
Loop = Callable[[dict[str, Any]], Any]
_SNAPSHOT = "checkpoint_manager_snapshot.json"


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
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Hand rank 0's metrics, and a reference to its checkpoint, to Ray. All workers wait here.

        Without a checkpoint this does nothing: Ray would not keep the report, the event log has
        the curves, and each report makes the workers wait for Ray's controller.
        """
        if checkpoint is None:
            return
        import ray.train

        given = ray.train.Checkpoint.from_directory(str(checkpoint)) if self.rank == 0 else None
        ray.train.report(
            metrics,
            checkpoint=given,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )

    def should_stop(self) -> bool:
        """True once the file STOP stands in the run's folder."""
        return (self.run_dir / STOP).exists()


@contextmanager
def _worker(settings: dict[str, Any]) -> Iterator[tuple[Config, RayRuntime]]:
    """Prepare a worker, also a restarted one, and yield its configuration and runtime."""
    run_dir = Path(settings["run_dir"])
    runtime = RayRuntime(run_dir)
    _log_to(run_dir / WORKER_LOG, runtime.rank)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        yield Config.model_validate(settings["config"]), runtime
    except (UserError, FloatingPointError) as error:  # a restart would only repeat it
        write_aside(run_dir / REFUSED, str(error).encode())
        raise


def _train(settings: dict[str, Any]) -> None:
    """The training function of Ray Train."""
    from gan_train.training.trainer import train

    shards = Path(settings["shards"])
    with _worker(settings) as (config, runtime):
        train(config, Index.load(shards), shards, runtime)


def _evaluate(settings: dict[str, Any]) -> dict[str, Any]:
    """The scores and the protocol of a checkpoint; Ray hands back what rank 0 returns."""
    from gan_train.training.scoring import evaluate_checkpoint

    shards, checkpoint = Path(settings["shards"]), Path(settings["checkpoint"])
    with _worker(settings) as (config, runtime):
        return evaluate_checkpoint(config, Index.load(shards), shards, checkpoint, runtime)


def _log_to(path: Path, rank: int) -> None:
    """Send this worker's messages to a file that the driver follows."""
    handler = logging.FileHandler(path, encoding="utf-8")
    layout = f"%(asctime)s %(levelname)s worker {rank}: %(message)s"
    handler.setFormatter(logging.Formatter(layout))
    logger = logging.getLogger("gan_train")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _give_up_when_refused(run_dir: Path) -> UserCallback:
    """A callback that ends the training, without restarts, once a worker has left REFUSED: Ray
    Train's controller does not retry after an error in a callback."""
    import ray.train

    class GiveUp(ray.train.UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            if (run_dir / REFUSED).exists():
                raise next(iter(worker_exceptions.values()))

    return GiveUp()


def threads_per_worker(config: Config, cores: int) -> int:
    """The number of CPU threads of one worker: `train.threads`, else its share of `cores`."""
    if config.train.threads is not None:
        return config.train.threads
    share = cores // config.cluster.workers if address_of(config.cluster) is None else 0
    return max(1, share, int(config.cluster.cpus_per_worker))


def clear(run_dir: Path) -> None:
    """Remove the files STOP and REFUSED of an earlier attempt, which would end a new one."""
    for name in (STOP, REFUSED):
        (run_dir / name).unlink(missing_ok=True)


def fit(config: Config, shards: Path, run_dir: Path) -> Outcome:
    """Train on `config.cluster.workers` workers until the schedule ends or STOP appears.

    `shards` and `run_dir` are absolute paths that every worker sees. A lost worker restarts the
    group from the newest valid checkpoint, at most `config.cluster.max_failures` times. May be
    called from any thread, after `clear`. Raises UserError for a mistake that a restart cannot
    mend, and RuntimeError with the workers' errors when the restarts are used up.
    """
    (run_dir / _SNAPSHOT).unlink(missing_ok=True)  # it may name deleted checkpoints
    settings = {"shards": str(shards), "run_dir": str(run_dir)}
    return _launch(_train, config, settings, run_dir)


def evaluate(config: Config, shards: Path, checkpoint: Path) -> dict[str, Any]:
    """Score a checkpoint, or a downloaded generator, on the workers; returns `scores` and
    `protocol`.

    Raises UserError when the checkpoint or generator was made for other data.
    """
    settings = {"shards": str(shards), "checkpoint": str(checkpoint)}
    storage = config.workspace / "evaluate" / f"{checkpoint.name}-{uuid.uuid4().hex[:8]}"
    storage.mkdir(parents=True)
    try:
        scored = _launch(_evaluate, config, settings | {"run_dir": str(storage)}, storage)
    finally:
        shutil.rmtree(storage)
    assert isinstance(scored.value, dict)
    return scored.value


def _launch(loop: Loop, config: Config, settings: dict[str, str], run_dir: Path) -> Outcome:
    """Run `loop` on all workers by Ray Train, whose storage is the run's folder."""
    with connected(config.cluster):
        import ray.train
        import ray.train.torch

        # type checkers see the classes of Ray Train v1, but v2 is what runs
        v2: Any = ray.train
        use_gpu = gpus_wanted(config.cluster)
        threads = threads_per_worker(config, os.cpu_count() or 1)
        local = address_of(config.cluster) is None
        trainer = ray.train.torch.TorchTrainer(
            loop,
            train_loop_config=settings | {"config": config.model_dump(mode="json")},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.cluster.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": config.cluster.cpus_per_worker}
                | ({"GPU": 1} if use_gpu else {}),
            ),
            torch_config=ray.train.torch.TorchConfig(
                backend="nccl" if use_gpu else "gloo", timeout_s=int(config.cluster.timeout_s)
            ),
            run_config=v2.RunConfig(
                name=run_dir.name,
                storage_path=str(run_dir.parent),
                failure_config=v2.FailureConfig(
                    max_failures=config.cluster.max_failures, controller_failure_limit=10
                ),
                worker_runtime_env={
                    "env_vars": environment_of_workers(local) | {"OMP_NUM_THREADS": str(threads)}
                },
                callbacks=[_give_up_when_refused(run_dir)],
                logging_config=v2.LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            result: Any = trainer.fit()
        except ray.train.TrainingFailedError as error:
            refused = run_dir / REFUSED
            if refused.exists():
                raise UserError(refused.read_text(encoding="utf-8")) from error
            more = f"more in {run_dir / WORKER_LOG}"
            raise RuntimeError(f"training failed: {error}\n{more}") from error
        path = Path(result.checkpoint.path) if result.checkpoint else None
        return Outcome(path, result.metrics or {}, result.return_value)
