"""No kill, no damage and no divergence costs more than the work since the last whole checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train.adversary import Losses
from gan_train.errors import UserError
from gan_train.families.progan import ProGAN
from gan_train.files.atomic import write_json
from gan_train.runs.audit import GENERATOR, generator_damage
from gan_train.runs.checkpoint import (
    FOLDER,
    MANIFEST,
    SCORES,
    list_checkpoints,
    newest_valid,
    prune,
)
from gan_train.runs.events import read_events
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import stored_scores
from tests.training import (
    Stopping,
    assert_same_bits,
    run,
    run_workers,
    tiny_config,
    tiny_images,
    weights,
)
from tests.unit.runs.test_warm_start import trainer

# ---- divergence ----------------------------------------------------------------------------------


@pytest.mark.fault(
    "NaN in a loss, and a stop before the next tick",
    "no checkpoint of the broken state; the error names step, phase, images and how to repeat it",
)
@pytest.mark.parametrize("stopped", [True, False])
def test_what_has_diverged_is_not_saved(
    stopped: bool, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__total_kimg=0.064)
    run_dir = run(config, tmp_path / "run")
    (good,) = list_checkpoints(run_dir)
    before = weights(run_dir)
    objective = ProGAN.loss_g

    def broken(self: ProGAN, batch: Any, random: Any, clock: Any) -> Losses:
        found: Losses = objective(self, batch, random, clock)
        factor = float("nan") if clock.step == 5 else 1.0
        return Losses({name: factor * term for name, term in found.terms.items()}, found.metrics)

    monkeypatch.setattr(ProGAN, "loss_g", broken)
    runtime = Stopping(run_dir, asked=3) if stopped else PlainRuntime(run_dir)
    longer = tiny_config(tiny_source, tmp_path, train__total_kimg=0.128)
    with pytest.raises(FloatingPointError) as error:
        run(longer, run_dir, runtime)
    told = str(error.value)
    assert "at step 5 in phase G, on the 16 images from position 80" in told
    assert f"resume {run_dir.name} with train.total_kimg=0.096" in told and "00000" in told
    assert list_checkpoints(run_dir) == [good] and newest_valid(run_dir) == good
    assert_same_bits(weights(run_dir), before)


def test_no_part_of_a_checkpoint_may_be_broken(tiny_source: Path, tmp_path: Path) -> None:
    made = trainer(tiny_config(tiny_source, tmp_path, train__total_kimg=0.064), tmp_path / "run")
    made.run()
    shutil.rmtree(tmp_path / "run" / FOLDER)
    (moments,) = list(made.optimizers["G"].state.values())[:1]
    for tensor, what in (
        (next(made.adversary.parameters()).data, "networks"),
        (next(iter(made.averaged.state_dict().values())), "averaged networks"),
        (moments["exp_avg"], "optimizers"),
    ):
        kept = tensor.clone()
        tensor.view(-1)[-1] = torch.inf
        with pytest.raises(FloatingPointError, match=f"of the {what}"):
            made.save(score=False)
        tensor.copy_(kept)
    assert not list((tmp_path / "run").rglob("*.part")) and not list_checkpoints(tmp_path / "run")
    made.save(score=False)
    assert newest_valid(tmp_path / "run") is not None


# ---- damage --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at 64 and 128 images."""
    root = tmp_path_factory.mktemp("two")
    settings: dict[str, Any] = {"train__checkpoint_kimg": 0.064, "train__total_kimg": 0.128}
    return run(tiny_config(tiny_images(root / "source"), root, **settings), root / "run")


def _cut(data: bytearray) -> bytes:
    return bytes(data[: len(data) // 2])


def _zeroed(data: bytearray) -> bytes:
    return bytes(len(data))


def _flipped(data: bytearray) -> bytes:
    data[len(data) // 3] ^= 1
    return bytes(data)


@pytest.mark.fault(
    "any file of the newest checkpoint cut, zeroed or with a flipped bit; then of all of them",
    "the last whole one is taken, loudly; with none whole the run is refused, and never begun anew",
)
@pytest.mark.parametrize("harm", [_cut, _zeroed, _flipped])
def test_any_damaged_file_is_noticed(
    harm: Callable[[bytearray], bytes],
    two: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir = shutil.copytree(two, tmp_path / "run", symlinks=True)
    newest, before = list_checkpoints(run_dir)
    for path in sorted(newest.iterdir()):
        if path.name == SCORES:
            continue
        whole = path.read_bytes()
        path.write_bytes(harm(bytearray(whole)))
        caplog.clear()
        assert newest_valid(run_dir) == before, path.name
        assert "DAMAGED CHECKPOINT" in caplog.text and newest.name in caplog.text
        path.write_bytes(whole)
    assert newest_valid(run_dir) == newest
    for folder in (newest, before):
        path = folder / "networks.safetensors"
        path.write_bytes(harm(bytearray(path.read_bytes())))
    with pytest.raises(UserError, match=r"none of the 2 checkpoints .* Bring one back"):
        newest_valid(run_dir)


@pytest.mark.parametrize("harm", [_cut, _zeroed, _flipped])
@pytest.mark.parametrize("thinned", [False, True])
def test_a_damaged_generator_is_noticed(
    harm: Callable[[bytearray], bytes], thinned: bool, two: Path, tmp_path: Path
) -> None:
    """The checksums tell, and the ledger where a thinned checkpoint has none."""
    run_dir = shutil.copytree(two, tmp_path / "run", symlinks=True)
    if thinned:
        prune(run_dir, 1, None)
    folder = run_dir / FOLDER / "000000000064"
    assert (folder / MANIFEST).exists() != thinned and generator_damage(folder) is None
    for name in GENERATOR[thinned:]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(harm(bytearray(whole)))
        assert name in str(generator_damage(folder))
        (folder / name).unlink()
        assert generator_damage(folder) == f"{name} is missing"
        (folder / name).write_bytes(whole)


# ---- kills ---------------------------------------------------------------------------------------


def _dying_at(count: int, act: Callable[[], None]) -> bool:
    """Whether `act`, in a process of its own, came to its end before its file operation number
    `count`. There it is killed, with what it was writing half written."""
    child = os.fork()
    if child == 0:
        left = count

        def one(descriptor: int | None = None) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                if descriptor is not None and os.fstat(descriptor).st_size > 1:
                    with open(f"/proc/self/fd/{descriptor}", "r+b") as file:  # noqa: PTH123
                        file.truncate(os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
                one()

        fsync = os.fsync

        def forced(descriptor: int) -> None:
            if not os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
                one(descriptor)
            fsync(descriptor)

        os.fsync = forced
        sys.addaudithook(audit)
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return not os.WIFSIGNALED(status)


@pytest.mark.fault(
    "a kill at every file operation of a checkpoint, its scores and the thinning of an older one",
    "the half is never taken for a whole; the rerun completes it, and leaves nothing behind",
)
def test_a_kill_at_any_file_operation(
    tiny_source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__total_kimg=0.064)
    made = trainer(config, tmp_path / "made")
    made.run()
    scored = {"scores": {"fid": 1.0}, "protocol": {"images": 8}}
    run_dir, killed = tmp_path / "run", 0
    shutil.copytree(tmp_path / "made" / FOLDER, tmp_path / "first")
    (name,) = (folder.name for folder in list_checkpoints(tmp_path / "made"))
    made.runtime.run_dir = run_dir
    made.clock = type(made.clock)(5, 80)

    def act() -> None:
        made.save(score=False)
        write_json(run_dir / FOLDER / f"{80:012d}" / SCORES, scored)
        prune(run_dir, 1, None)

    whole: dict[str, torch.Tensor] | None = None
    while True:
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(tmp_path / "first", run_dir / FOLDER)
        ended = _dying_at(killed + 1, act)
        newest = newest_valid(run_dir)
        assert newest is not None and newest.name in (name, f"{80:012d}"), killed
        assert stored_scores(newest) in (None, scored, stored_scores(run_dir / FOLDER / name))
        act()
        whole = whole or weights(run_dir)
        assert_same_bits(weights(run_dir), whole)
        newest = newest_valid(run_dir)
        assert newest is not None and newest.name == f"{80:012d}"
        assert list_checkpoints(run_dir) == [newest] and stored_scores(newest) == scored
        left = {path.name for path in (run_dir / FOLDER / name).iterdir()}
        assert left == {"PRUNED", "scores.json", "generator.json", "generator.safetensors"}
        parts = [path for path in run_dir.rglob("*.part") if not path.name.startswith("scores")]
        assert not parts, "the scorer removes those of scores"
        if ended:
            break
        killed += 1
    assert killed > 30
    record_property("lost", f"nothing but the checkpoint itself, at {killed} places")


# ---- another number of workers -------------------------------------------------------------------


def _train(config: Any, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


@pytest.mark.fault(
    "a resume on another number of workers (4, 2, 3), across growth and in mid-fade",
    "the same order of images and the same alpha; a number that cannot divide is refused",
)
def test_resume_on_another_number_of_workers(tiny_source: Path, tmp_path: Path) -> None:
    """4 px to 96 images, fade to 8 px until 192, 8 px until 288."""
    settings: dict[str, Any] = {
        "data__lanes": 12,
        "data__block": 2,
        "train__batch": 24,
        "train__tick_kimg": 0.024,
        "family__fade_kimg": 0.096,
        "family__stable_kimg": 0.096,
        "train__precision": "float64",
        "family__mbstd_group": 1,
    }

    def until(kimg: float) -> Any:
        return tiny_config(tiny_source, tmp_path, train__total_kimg=kimg, **settings)

    moved = tmp_path / "moved"
    whole = run(until(0.288), tmp_path / "whole")
    for workers, kimg in ((4, 0.12), (2, 0.168), (3, 0.288)):  # the first two within the fade
        run_workers(workers, tmp_path, _train, until(kimg), moved)
    curves = [
        {e["nimg"]: e["values"] for e in read_events(run_dir) if e["kind"] == "metrics"}
        for run_dir in (whole, moved)
    ]
    assert curves[0].keys() == curves[1].keys() and len(curves[0]) == 12
    for nimg, values in curves[0].items():
        assert values["alpha"] == curves[1][nimg]["alpha"]
        assert values["loss/D"] == pytest.approx(curves[1][nimg]["loss/D"], rel=1e-9)
    one, other = weights(whole), weights(moved)
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=1e-7, atol=1e-9)
    with pytest.raises(Exception, match="must divide the lanes: 1, 2, 3, 4, 6, 12"):
        run_workers(5, tmp_path, _train, until(0.312), moved)
