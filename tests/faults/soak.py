"""A soak: real runs of the whole pipeline, with faults injected at random, against one without.

    python -m tests.faults.soak --minutes 30 --seed 0

One run is left alone. Then runs of the same recipe, each in a workspace and with a registry of its
own, are harmed until the minutes are over: a schedule that depends on the seed alone says which
fault comes next. After each the training has to go on, by itself or by the command that a person
would type. At its end a run has to have the same weights bit for bit, the same events once each,
the same metrics in MLflow, and one registered version with the same score. What differs ends the
soak with status 1. The report goes to build/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import LOG_NAME, read_events
from tests.training import assert_same_bits

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("gan-train"))
RECOVERY_S = 300.0
"""A training that does not go on for so many seconds after a fault has been lost."""
VARYING = ("images_per_second", "memory_gib")
"""Metrics that differ between two runs of the same bits."""
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


class Registry:
    """An MLflow server on loopback, which can be killed and comes back on the same port."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.url = f"http://127.0.0.1:{port}"
        folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self._folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                    *("--port", str(self._port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"),
                    *("--artifacts-destination", str(self._folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200:
                    return
            time.sleep(0.3)
        raise TimeoutError(f"no MLflow at {self.url}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@dataclass
class Pipeline:
    """One run of the pipeline, taken up again after each end that was not its own."""

    folder: Path
    kimg: float
    port: int
    registry: Registry = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    statuses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.registry = Registry(self.folder / "registry", self.port)

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
                    *("--set", f"registry.tracking_uri={self.registry.url}"),
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
    "SIGKILL of Ray Train's controller": _signalled("TrainController", signal.SIGKILL),
    "SIGKILL of the raylet": _signalled("raylet/raylet", signal.SIGKILL),
    "SIGKILL of the driver": _to_driver(signal.SIGKILL),
    "SIGTERM to the driver": _to_driver(signal.SIGTERM),
    "SIGINT to the driver": _to_driver(signal.SIGINT),
    "SIGHUP to the driver": _to_driver(signal.SIGHUP),
    "MLflow killed and back": _registry_away,
    "the newest checkpoint damaged": _killed_and_damaged,
}


# ---- comparing ---------------------------------------------------------------------------------


def told(run_dir: Path) -> list[dict[str, Any]]:
    """What the log of a run says, without times and what differs from machine to machine. Stops and
    starts are left out: a harmed run has more of them."""
    kept = []
    for event in read_events(run_dir):
        if event["kind"] not in ("metrics", "image", "checkpoint"):
            continue
        event = {key: value for key, value in event.items() if key not in ("time_ms", "device")}
        if "values" in event:
            event["values"] = {k: v for k, v in event["values"].items() if k not in VARYING}
        kept.append(event)
    return kept


def recorded(pipeline: Pipeline) -> dict[str, Any]:
    """What the registry says: the metrics of the run, each step once, and the versions."""
    import mlflow

    client = mlflow.MlflowClient(pipeline.registry.url, pipeline.registry.url)
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        for key in sorted(run.data.metrics)
        if not key.endswith(VARYING)
    }
    versions = [
        {
            "version": version.version,
            "aliases": list(version.aliases),
            **{key: version.tags.get(key) for key in ("score", "metric", "weights_sha256")},
        }
        for version in client.search_model_versions()
    ]
    return {
        "status": run.info.status,
        "metrics": {key: sorted(points) for key, points in metrics.items()},
        "versions": versions,
    }


def differences(whole: Pipeline, harmed: Pipeline) -> Iterator[str]:
    """What the harmed run has lost, doubled or changed."""
    assert whole.run_dir and harmed.run_dir
    a, b = list_checkpoints(whole.run_dir)[0], list_checkpoints(harmed.run_dir)[0]
    if a.name != b.name:
        yield f"it ended at {b.name} images and not at {a.name}"
        return
    for name in ("networks", "generator", "optimizers"):
        try:
            assert_same_bits(
                load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
            )
        except AssertionError as error:
            yield f"{name}: {error}"
    first, second = (
        [json.dumps(e, sort_keys=True) for e in told(p.run_dir)] for p in (whole, harmed)
    )
    if len(second) != len(set(second)):
        yield "an event stands twice in the log"
    for event in sorted(set(first) ^ set(second))[:4]:
        yield f"only {'the whole' if event in first else 'the harmed'} run says {event[:300]}"
    one, other = recorded(whole), recorded(harmed)
    for key in one:
        if one[key] != other[key]:
            yield f"MLflow's {key}: {str(one[key])[:600]} and {str(other[key])[:600]}"


# ---- the soak ----------------------------------------------------------------------------------


@dataclass
class Injected:
    """One fault, and how long the training took to go on after it."""

    name: str
    seconds: float


def harm(
    pipeline: Pipeline, chance: random.Random, pause: tuple[float, float], most: int
) -> list[Injected]:
    """Run the pipeline to its end, with at most `most` faults on the way."""
    done: list[Injected] = []
    pipeline.start()
    due = time.monotonic() + chance.uniform(*pause)
    names = sorted(FAULTS)
    while not pipeline.finished():
        time.sleep(0.2)
        if len(done) >= most or time.monotonic() < due:
            continue
        name = chance.choice(names)
        before, moment = pipeline.nimg(), time.monotonic()
        if not FAULTS[name](pipeline, chance):
            due = time.monotonic() + 1
            continue
        print(f"{name} at {before} images", flush=True)
        ended = False
        while pipeline.nimg() <= before and not (ended := pipeline.finished()):
            assert time.monotonic() - moment < RECOVERY_S, f"{name}: nothing goes on"
            time.sleep(0.2)
        done.append(Injected(name, time.monotonic() - moment))
        print(f"  goes on after {done[-1].seconds:.1f} s", flush=True)
        if ended:
            break
        due = time.monotonic() + chance.uniform(*pause)
    return done


def report(rounds: list[list[Injected]], seconds: float, seed: int, wrong: list[str]) -> str:
    """The report as Markdown: each fault, how often, and how soon the training went on."""
    every = [one for round_ in rounds for one in round_]
    lines = [
        f"{len(rounds)} harmed runs in {seconds / 60:.0f} minutes, {len(every)} faults, "
        f"seed {seed}; "
        + ("what differs from the run without faults:" if wrong else "all as without faults."),
        *(f"- {line}" for line in wrong),
        "",
        "| fault | times | goes on after (median, longest) |",
        "|---|---|---|",
    ]
    for name in sorted({one.name for one in every}):
        took = sorted(one.seconds for one in every if one.name == name)
        lines.append(f"| {name} | {len(took)} | {took[len(took) // 2]:.1f} s, {took[-1]:.1f} s |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Settings:
    """How long, with which faults, and what is trained."""

    minutes: float = 30
    seed: int = 0
    kimg: float = 60
    """Images at 8 pixels, in thousands."""
    pause: tuple[float, float] = (2.0, 20.0)
    """The seconds between the end of one fault and the next, from and to."""
    most: int = 1000
    """The number of faults in a run at most."""


def soak(folder: Path, settings: Settings, port: int) -> tuple[str, bool]:
    """Harm runs until the minutes are over, at least one; returns the report and whether all of
    them ended as the run without faults did. The registries take the ports from `port` on."""
    chance = random.Random(settings.seed)
    begun = time.monotonic()
    whole = Pipeline(folder / "whole", settings.kimg, port)
    rounds: list[list[Injected]] = []
    wrong: list[str] = []
    try:
        whole.start()
        while not whole.finished():
            assert not any(whole.statuses), "the run without faults failed: see whole/log.txt"
            time.sleep(0.5)
        print(f"without faults: {time.monotonic() - begun:.0f} s", flush=True)
        start = time.monotonic()
        while not rounds or (time.monotonic() - start < 60 * settings.minutes and not wrong):
            harmed = Pipeline(
                folder / f"harmed-{len(rounds)}", settings.kimg, port + 1 + len(rounds)
            )
            try:
                rounds.append(harm(harmed, chance, settings.pause, settings.most))
                found = list(differences(whole, harmed))
                wrong += [f"run {len(rounds)}: {line}" for line in found]
            finally:
                harmed.close()
            print(f"run {len(rounds)}: {'differs' if found else 'as without faults'}", flush=True)
    finally:
        whole.close()
    return report(rounds, time.monotonic() - start, settings.seed, wrong), not wrong


def main() -> int:
    """The command."""
    # a shell's background job ignores it, and so would all that is started here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kimg", type=float, default=60, help="images at 8 pixels, in thousands")
    parser.add_argument("--port", type=int, default=5400, help="the first of the registries' ports")
    parser.add_argument("--keep", type=Path, help="a new folder, which stays")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(options.minutes, options.seed, options.kimg)
    text, same = soak(folder.absolute(), settings, options.port)
    place = ROOT / "build" / "soak.md"
    place.parent.mkdir(exist_ok=True)
    place.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{place}; runs in {folder}")
    if same and options.keep is None:
        shutil.rmtree(folder)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
