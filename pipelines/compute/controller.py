"""What Ray Train's controller, which starts and watches the workers, does beside that, and where.

Its callbacks are the extension points of Ray Train: those of this project are here, and those of
Ray Train's own that this project does without are left out.
"""

from __future__ import annotations

import asyncio
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


def trainer_class(here: bool, autoscaled: bool) -> type[TorchTrainer]:
    """Ray's trainer without those of its actors that have nothing to do here. Each is a process,
    which imports Ray Train for two seconds while the workers start.

    One would read Ray's own data sets, of which there are none. Another would free the room of the
    workers after the controller was killed, which `room.give_back` does. A third tells an
    autoscaler of the workers, if there is one (`autoscaled`). With `here` the controller itself is
    none, either: it runs in the process and the thread that call `fit`.
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
                return _run(**given)
            return super()._initialize_and_run_controller(**given)  # type: ignore[misc]

    return Lean


def _run(**given: Any) -> Any:
    """Run a controller in this thread until the training has ended; returns its result.

    On one machine nothing is safer in a process of its own: if this one dies, so do the workers.
    And the workers need not wait for a process that imports all of this once more.
    """
    from ray.train.v2._internal.execution.controller import TrainController

    _allow_no_actor()
    controller = TrainController(**given)
    asyncio.run(controller.run())
    return controller.get_result()


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
    run_dir: Path, check_room: Callable[[], None], hear: Callable[[], None]
) -> RayTrainCallback:
    """A callback that checks whether there is room for workers, has new ones call `hear`, and notes
    where they stand."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class AtStart(WorkerGroupCallback):
        def before_worker_group_start(self, worker_group_context: Any) -> None:
            check_room()

        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(hear)
            handle = worker_group.get_worker_group_state().placement_group_handle
            room.note(run_dir, handle.placement_group)

    return AtStart()
