"""What Ray Train's controller, which starts and watches the workers, does beside that, and where.

Its callbacks are the extension points of Ray Train: those of this project are here, and those of
Ray Train's own that this project does without are left out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.files.store import origin_of
from gan_train.runs.shared import REFUSED
from pipelines.compute import room
from pipelines.compute.metrics import collected, count_failure

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.callback import RayTrainCallback


def trainer_class(
    silent_s: float, here: Callable[[], None] | None, autoscaled: bool
) -> type[TorchTrainer]:
    """Ray's trainer, whose controller replaces workers that do not answer for `silent_s`, without
    those of its actors that have nothing to do here. Each is a process, which imports Ray Train for
    two seconds while the workers start.

    One would read Ray's own data sets, of which there are none. Another would free the room of the
    workers after the controller was killed, which `room.give_back` does. A third tells an
    autoscaler of the workers, if there is one (`autoscaled`). With `here` the controller itself is
    none, either: it runs in the process and the thread that call `fit`, and calls `here` each time
    that it looks at the workers.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    idle = (DatasetsCallback, PlacementGroupCleanerCallback)

    class NobodyAsked(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Lean(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            every: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in every if not isinstance(one, idle)]

        def _initialize_and_run_controller(self, **given: Any) -> Any:
            if not autoscaled:
                given["scaling_policy"] = NobodyAsked(self.scaling_config)  # type: ignore[arg-type]
            if here:
                return _run(silent_s, here, given)
            # the actor takes it from the environment, and keeps it
            os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = f"{silent_s:g}"
            return super()._initialize_and_run_controller(**given)  # type: ignore[misc]

    return Lean


def _run(silent_s: float, look: Callable[[], None], given: dict[str, Any]) -> Any:
    """Run a controller in this thread until the training has ended, and call `look` now and then;
    returns its result.

    On one machine nothing is safer in a process of its own: if this one dies, so do the workers.
    And the workers need not wait for a process that imports all of this once more.
    """
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    class Group(WorkerGroup):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._worker_health_check_timeout_s = silent_s

    class Here(TrainController):
        worker_group_cls = Group

        async def _run_control_loop_iteration(self) -> None:
            look()
            await super()._run_control_loop_iteration()  # type: ignore[no-untyped-call]

    _allow_no_actor()
    _write_beside_ray()
    controller: Any = Here(**given)
    asyncio.run(controller.run())
    return controller.get_result()


def _write_beside_ray() -> None:
    """Have Ray Train write of what it does, and of errors of our callbacks with their tracebacks,
    into the logs of this Ray, and not to the terminal."""
    from ray._private.worker import global_worker

    assert global_worker.node is not None
    path = Path(global_worker.node.get_logs_dir_path()) / "train-controller.log"
    logger = logging.getLogger("ray.train")
    if any(getattr(known, "baseFilename", "") == str(path) for known in logger.handlers):
        return
    for known in list(logger.handlers):  # of the Ray before
        logger.removeHandler(known)
        known.close()
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@cache
def _allow_no_actor() -> None:
    """Let Ray answer None in this process, where it raises an error, when it is asked for the actor
    in which it runs. A controller gives its workers a handle of it, with which they may ask for
    earlier checkpoints; ours do not."""
    from ray import runtime_context

    kind: Any = runtime_context.RuntimeContext
    ask = kind.current_actor.fget
    kind.current_actor = property(lambda self: ask(self) if self.get_actor_id() else None)


def after_failures(run_dir: Path, recipe: str) -> UserCallback:
    """A callback that counts the failures of the workers, and ends the training, without restarts,
    once a worker has left REFUSED: Ray Train's controller does not retry after an error in a
    callback."""
    import ray.train

    store = origin_of(run_dir)

    class AfterFailures(ray.train.UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            refused = store.look(REFUSED) is not None if store else (run_dir / REFUSED).exists()
            if collected():
                diverged = "FloatingPointError" in repr(worker_exceptions)
                cause = ("diverged" if diverged else "refused") if refused else "lost"
                count_failure(run_dir.name, recipe, cause)
            if refused:
                raise next(iter(worker_exceptions.values()))

    return AfterFailures()


def at_start(
    run_dir: Path, check: Callable[[], None], hear: Callable[[], None]
) -> RayTrainCallback:
    """A callback that calls `check` before workers start, has new ones call `hear`, and notes where
    they stand."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class AtStart(WorkerGroupCallback):
        def before_worker_group_start(self, worker_group_context: Any) -> None:
            check()

        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(hear)
            handle = worker_group.get_worker_group_state().placement_group_handle
            room.note(run_dir, handle.placement_group)

    return AtStart()
