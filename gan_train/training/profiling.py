"""Profiles some steps of a run, as a trace that https://ui.perfetto.dev opens.

`torch.profiler` records the operators of the training process, and the kernels of its GPU, if it
has one. Recording takes time and memory, but does not change what is computed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from gan_train.runs import run_folder

log = logging.getLogger(__name__)

WARM_UP = 5
"""The number of steps before the first that is recorded. Steps are slower until memory is allocated
and kernels are chosen."""


class StepProfiler:
    """Records `steps` training steps, once, after `WARM_UP` others; with 0 steps it does nothing.

    Use it as a context manager around the training, and call `step` after each step. The trace is
    written into `run_dir/profile` when the last step is recorded, or when training ends before.
    """

    def __init__(self, steps: int, run_dir: Path, device: torch.device) -> None:
        self._folder, self._steps = run_dir / run_folder.PROFILE, steps
        self._profile: profile | None = None
        if steps > 0:
            activities = [ProfilerActivity.CPU]
            if device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> StepProfiler:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._profile is not None:
            self._profile.stop()

    def step(self) -> None:
        """Tell the profiler that a training step is done."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, recorded: profile) -> None:
        """Write the trace, under a number that no earlier attempt of this run has used."""
        self._folder.mkdir(exist_ok=True)
        number = sum(1 for _ in self._folder.iterdir())
        path = self._folder / f"trace-{number}.json.gz"
        recorded.export_chrome_trace(str(path))
        log.info("a profile of up to %d steps: open %s in ui.perfetto.dev", self._steps, path)
