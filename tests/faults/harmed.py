"""One run of the whole pipeline for the soak, with a registry of its own, and what can harm it."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import LOG_NAME, read_events
from tests.pipelines.registry_server import Server

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("gan-train"))
STARTS = 200
"""So many times a run is taken up again at most."""


# ---- what is trained ---------------------------------------------------------------------------


def recipe(kimg: float) -> list[str]:
    """The demo's letters at 4 and 8 pixels on two workers, for `kimg` thousand images at 8."""
    settings = [
        *("data.resolution=8", "family.channels={4: 32, 8: 16}", "family.milestones_from=4"),
        *("family.fade_kimg=1", f"family.stable_kimg={{4: 1, 8: {kimg}}}"),
        *("train.checkpoint_kimg=2", "train.precision=float32", "cluster.workers=2"),
        *("evaluate.images=200", "evaluate.metrics=[frechet]", "cluster.timeout_s=30"),
    ]
    return [word for setting in settings for word in ("--set", setting)]


@dataclass
class Pipeline:
    """One run of the pipeline, taken up again after each end that was not its own."""

    folder: Path
    kimg: float
    registry: Server = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    statuses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "registry").mkdir()
        self.registry = Server(self.folder / "registry")
        self.registry.start()

    @property
    def run_dir(self) -> Path | None:
        """The run, once there is one."""
        found = sorted((self.folder / "runs" / "train").glob(f"*/{LOG_NAME}"))
        assert len(found) <= 1, f"several runs: {found}"
        return found[0].parent if found else None

    def start(self) -> None:
        """Begin, or go on as a person would: with --resume, once there is a run."""
        self.starts += 1
        assert self.starts <= STARTS, "it never ends"
        resume = ["--resume", self.run_dir.name] if self.run_dir else []
        with (self.folder / "log.txt").open("ab") as log:
            log.write(f"\n==== start {self.starts} {resume} ====\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [
                    *(COMMAND, "run", str(ROOT / "configs" / "demo.yaml"), *resume),
                    *("--set", f"registry.tracking_uri={self.registry.uri}"),
                    *("--set", f"data.source={ROOT / 'sample_data' / 'glyphs.zip'}"),
                    *recipe(self.kimg),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finished(self) -> bool:
        """Whether the command has ended well; begins it again where it has ended otherwise."""
        assert self.process is not None
        status = self.process.poll()
        if status is None:
            return False
        self.statuses.append(status)
        if status == 0:
            return True
        self.start()
        return False

    def nimg(self) -> int:
        """How many images the newest event was written at."""
        events = read_events(self.run_dir) if self.run_dir else []
        return max((event["nimg"] for event in events), default=0)

    def named(self, part: str) -> list[psutil.Process]:
        """The processes below the command whose title has these characters."""
        assert self.process is not None
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if part in " ".join(process.cmdline()):
                        found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def close(self) -> None:
        """End what is left of it."""
        if self.process is not None and self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            for process in [psutil.Process(self.process.pid), *below]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.wait()
        self.registry.kill()


# ---- faults ------------------------------------------------------------------------------------

Fault = Callable[[Pipeline, random.Random], bool]
"""Injects a fault; returns whether there was something to harm."""


def _signalled(part: str, number: signal.Signals) -> Fault:
    def inject(pipeline: Pipeline, chance: random.Random) -> bool:
        found = pipeline.named(part)
        if not found:
            return False
        with contextlib.suppress(psutil.Error):
            chance.choice(found).send_signal(number)
        return True

    return inject


def _to_driver(number: signal.Signals) -> Fault:
    def inject(pipeline: Pipeline, chance: random.Random) -> bool:
        assert pipeline.process is not None
        pipeline.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            pipeline.process.wait(60)
        return True

    return inject


def _registry_away(pipeline: Pipeline, chance: random.Random) -> bool:
    pipeline.registry.kill()
    time.sleep(chance.uniform(2, 20))
    pipeline.registry.start()
    return True


def _killed_and_damaged(pipeline: Pipeline, chance: random.Random) -> bool:
    """The machine dies, and the newest checkpoint is not what was written."""
    assert pipeline.process is not None
    if pipeline.run_dir is None or len(list_checkpoints(pipeline.run_dir)) < 2:
        return False
    pipeline.process.kill()
    pipeline.process.wait()
    newest = list_checkpoints(pipeline.run_dir)[0]
    victim = chance.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(victim.read_bytes())
    how = chance.choice(["cut", "zeroed", "flipped"])
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "zeroed":
        content = bytearray(len(content))
    elif content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    victim.write_bytes(content)
    return True


FAULTS: dict[str, Fault] = {
    "SIGKILL of a worker": _signalled("RayTrainWorker", signal.SIGKILL),
    "SIGTERM of a worker": _signalled("RayTrainWorker", signal.SIGTERM),
    "SIGSTOP of a worker": _signalled("RayTrainWorker", signal.SIGSTOP),
    "SIGKILL of the raylet": _signalled("raylet/raylet", signal.SIGKILL),
    "SIGKILL of the driver": _to_driver(signal.SIGKILL),
    "SIGTERM to the driver": _to_driver(signal.SIGTERM),
    "SIGINT to the driver": _to_driver(signal.SIGINT),
    "SIGHUP to the driver": _to_driver(signal.SIGHUP),
    "MLflow killed and back": _registry_away,
    "the newest checkpoint damaged": _killed_and_damaged,
}
