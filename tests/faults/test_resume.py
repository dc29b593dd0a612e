"""A killed and resumed run ends in the very bits of one that was never killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import read_json, write_json
from gan_train.files.digests import sha256_of
from gan_train.runs.checkpoint import (
    FOLDER,
    MANIFEST,
    SCORES,
    list_checkpoints,
    list_generators,
    newest_valid,
    refuse_changes,
)
from gan_train.runs.events import lasting, read_events, read_with_offsets
from gan_train.runs.ledger import LEDGER
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import best_checkpoint
from tests.training import (
    Stopping,
    assert_same_bits,
    processes,
    run,
    run_workers,
    tiny_config,
    weights,
)

ALL = ("networks", "generator", "optimizers")


class Killed(PlainRuntime):
    """Dies by SIGKILL at the first report at or after `nimg`."""

    def __init__(self, run_dir: Path, nimg: int) -> None:
        super().__init__(run_dir)
        self.nimg = nimg

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if metrics["nimg"] >= self.nimg:
            os.kill(os.getpid(), signal.SIGKILL)


def _killed(rank: int, config: Config, run_dir: Path, nimg: int) -> None:
    run(config, run_dir, Killed(run_dir, nimg))


def run_killed(config: Config, run_dir: Path, nimg: int) -> None:
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        processes(1, _killed, config, run_dir, nimg)


@pytest.mark.fault(
    "SIGKILL of a plain training between two checkpoints",
    "goes on from the last checkpoint; weights and ledger end in the same bits",
)
@pytest.mark.parametrize(
    ("killed_at", "changes"),
    [
        # the schedule: 4 px to 64 images, fade to 8 px until 128, 8 px until 192
        pytest.param(64, {}, id="before the change of resolution"),
        pytest.param(128, {}, id="inside the fade"),
        pytest.param(176, {"family__loss": "wgan-gp"}, id="after the fade, WGAN-GP"),
        pytest.param(128, {"train__accumulate": 2, "train__precision": "bf16"}, id="bf16"),
        pytest.param(128, {"data__mirror": True, "data__loader_workers": 1}, id="loader process"),
    ],
)
def test_resume_is_bit_exact(
    killed_at: int, changes: dict[str, Any], tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048, **changes)
    whole = run(config, tmp_path / "whole")
    broken = tmp_path / "broken"
    run_killed(config, broken, killed_at)
    assert 0 < int(list_checkpoints(broken)[0].name) < 192, "killed too early or too late"
    run(config, broken)
    for name in ALL:
        assert_same_bits(weights(broken, name), weights(whole, name))
    assert (broken / LEDGER).read_bytes() == (whole / LEDGER).read_bytes()


def _train(config: Config, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


@pytest.mark.parametrize(("workers", "precision"), [(2, "full"), (4, "full"), (4, "bf16")])
def test_resume_on_several_workers(
    workers: int, precision: str, tiny_source: Path, tmp_path: Path
) -> None:
    """Stopped after one half of the images; the second half continues to the same bits. So a run
    gives the same bits twice: how sums over the workers are rounded depends on no timing, and not
    on which buckets the run before the stop had learned to send early."""
    settings: dict[str, Any] = {
        "train__checkpoint_kimg": 0.048,
        "train__reduce_precision": precision,
    }
    config = tiny_config(tiny_source, tmp_path, **settings)
    half = tiny_config(tiny_source, tmp_path, train__total_kimg=0.096, **settings)
    run_workers(workers, tmp_path, _train, config, tmp_path / "whole")
    run_workers(workers, tmp_path, _train, half, tmp_path / "halves")
    run_workers(workers, tmp_path, _train, config, tmp_path / "halves")
    for name in ALL:
        assert_same_bits(weights(tmp_path / "halves", name), weights(tmp_path / "whole", name))


def _stopped(config: Config, run_dir: Path, asked: int) -> None:
    run(config, run_dir, Stopping(run_dir, asked))


def told(run_dir: Path) -> dict[int, dict[str, float]]:
    """What each tick has measured, by the number of images."""
    events = [event for event in read_events(run_dir) if event["kind"] == "metrics"]
    return {event["nimg"]: lasting(event["values"]) for event in events}


@pytest.mark.fault(
    "a stop between two ticks",
    "the next tick tells what it would have told, to the last bit on as many workers",
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_tick_that_a_stop_divides_is_whole(
    workers: int, tiny_source: Path, tmp_path: Path
) -> None:
    # ticks at 96 and 160 images, where a stage ends; workers ask each other every eight steps
    settings: dict[str, Any] = {
        "family__fade_kimg": 0.16,
        "family__stable_kimg": 0.16,
        "train__tick_kimg": 0.096,
        "train__total_kimg": 0.208,
    }
    config = tiny_config(tiny_source, tmp_path, **settings)
    run_workers(workers, tmp_path, _train, config, tmp_path / "whole")
    asked = 8 if workers == 1 else 1
    run_workers(workers, tmp_path, _stopped, config, tmp_path / "run", asked)
    (saved,) = list_checkpoints(tmp_path / "run")
    assert int(saved.name) == 128 and sorted(told(tmp_path / "run")) == [96]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    run_workers(workers, tmp_path, _train, config, tmp_path / "run")
    whole = told(tmp_path / "whole")
    assert sorted(whole) == [96, 160, 192, 208]
    assert told(tmp_path / "run") == whole
    if workers > 1:  # on another number of workers, but for rounding
        run_workers(1, tmp_path, _train, config, tmp_path / "other")
        found, expected = told(tmp_path / "other")[160], whole[160]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.fault(
    "a file of the newest checkpoint cut, gone or with a flipped bit",
    "the checkpoint before it is taken, loudly; the weights end in the same bits",
)
@pytest.mark.parametrize("file", ["networks.safetensors", "optimizers.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_loudly(
    file: str, harm: str, tiny_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048)
    run_dir = run(config, tmp_path / "run")
    newest, before = list_checkpoints(run_dir)[:2]
    path = newest / file
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with caplog.at_level(logging.ERROR):
        assert newest_valid(run_dir) == before
    assert "DAMAGED CHECKPOINT" in caplog.text and file in caplog.text
    undamaged = tmp_path / "again"
    run(config, undamaged)
    run(config, run_dir)  # from the one before: ends in the same bits
    for name in ALL:
        assert_same_bits(weights(run_dir, name), weights(undamaged, name))


@pytest.mark.fault("a checkpoint whose writing never ended", "it is not taken for a checkpoint")
def test_an_unfinished_write_is_not_a_checkpoint(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048)
    run_dir = run(config, tmp_path / "run")
    newest = newest_valid(run_dir)
    assert newest is not None
    shutil.copytree(newest, run_dir / FOLDER / "000000000999.tmp")
    assert newest_valid(run_dir) == newest


@pytest.mark.fault(
    "parameters changed on resume", "refused, with each key and both its values, unless declared"
)
def test_a_changed_configuration_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    run_dir = run(tiny_config(tiny_source, tmp_path), tmp_path / "run")
    changed = tiny_config(tiny_source, tmp_path, train__ema_kimg=3.0, family__lr=0.5)
    with pytest.raises(UserError, match=r"family\.lr: 0\.001 -> 0\.5; train\.ema_kimg: 10\.0 -> 3"):
        run(changed, run_dir)
    declared = tiny_config(
        tiny_source,
        tmp_path,
        family__lr=0.5,
        train__allow_changed=["family.lr"],
        train__total_kimg=0.25,
    )
    run(declared, run_dir)
    assert int(list_checkpoints(run_dir)[0].name) >= 250


def test_settings_that_came_later_count_at_their_defaults(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path, family__z_dim=8)
    saved = config.model_dump(mode="json")
    del saved["train"]["ema_ramp"]
    refuse_changes(saved, config)
    del saved["family"]["z_dim"]
    with pytest.raises(UserError, match=r"family\.z_dim: 512 -> 8"):
        refuse_changes(saved, config)


def test_a_checkpoint_of_another_version_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    run_dir = run(tiny_config(tiny_source, tmp_path), tmp_path / "run")
    folder = list_checkpoints(run_dir)[0]
    state, manifest = read_json(folder / "state.json"), read_json(folder / MANIFEST)
    write_json(folder / "state.json", state | {"format": 2})
    write_json(folder / MANIFEST, manifest | {"state.json": sha256_of(folder / "state.json")})
    with pytest.raises(UserError, match=r"state\.json is of another version .*format 2"):
        run(tiny_config(tiny_source, tmp_path), run_dir)


def test_other_data_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    run_dir = run(tiny_config(tiny_source, tmp_path), tmp_path / "run")
    (tiny_source / "red" / "0.png").unlink()
    with pytest.raises(UserError, match="trained on other data"):
        run(tiny_config(tiny_source, tmp_path), run_dir)


def test_the_event_log_tells_everything_once(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048)
    run_dir = tmp_path / "run"
    run_killed(config, run_dir, 144)
    with (run_dir / "events.jsonl").open("a") as file:
        file.write('{"kind": "metr')  # torn by the kill
    run(config, run_dir)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    told = [(e["kind"], e["nimg"]) for e in events]
    assert len(told) == len(set(told))
    assert [n for kind, n in told if kind == "checkpoint"] == [48, 64, 96, 144, 192]
    assert told[-1] == ("end", 192)


def test_a_resume_that_is_not_bit_exact_begins_the_log_anew(
    tiny_source: Path, tmp_path: Path
) -> None:
    """As on a GPU, or, here, under a setting that was declared harmless."""
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048)
    run_dir = tmp_path / "run"
    run_killed(config, run_dir, 144)  # at the tick, before the checkpoint at 144
    assert int(list_checkpoints(run_dir)[0].name) == 96
    lr = {"family__lr": 0.01, "train__allow_changed": ["family.lr"]}
    run(tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048, **lr), run_dir)
    events = [event for event, _ in read_with_offsets(run_dir)]
    (cut,) = [event["nimg"] for event in events if event["kind"] == "cut"]
    assert cut == 128, "the first tick after the checkpoint at 96"
    present = read_events(run_dir)
    told = [(e["kind"], e["nimg"]) for e in present]
    assert len(told) == len(set(told)) and told[-1] == ("end", 192)
    rates = {e["nimg"]: e["values"]["learning_rate/G"] for e in present if e["kind"] == "metrics"}
    assert {nimg: rate == 0.01 for nimg, rate in rates.items()} == {
        nimg: nimg > 96 for nimg in (32, 48, 64, 96, 128, 144, 160, 192)
    }


def test_checkpoints_of_an_abandoned_past_are_not_taken_for_the_run(
    tiny_source: Path, tmp_path: Path
) -> None:
    """Only damaged ones can lie beyond the place from which a run goes on."""
    settings: dict[str, Any] = {"train__checkpoint_kimg": 0.048}
    run_dir = run(tiny_config(tiny_source, tmp_path, **settings), tmp_path / "run")
    before = {int(folder.name): folder for folder in list_generators(run_dir)}
    assert sorted(before) == [48, 64, 96, 144, 192]
    for nimg in (144, 192):  # better than anything that follows
        write_json(before[nimg] / SCORES, {"scores": {"fid": -1.0}, "protocol": {}})
        (before[nimg] / "networks.safetensors").unlink()
    settings |= {"train__checkpoint_kimg": 0.16, "family__lr": 0.01}
    settings |= {"train__allow_changed": ["family.lr"]}
    run(tiny_config(tiny_source, tmp_path, **settings), run_dir)
    assert [int(folder.name) for folder in list_generators(run_dir)] == [192, 160, 96, 64, 48]
    assert best_checkpoint(run_dir, "fid") is None
    assert (before[144] / "generator.json").exists()
    events = read_events(run_dir)
    assert [e["nimg"] for e in events if e["kind"] == "checkpoint"] == [48, 64, 96, 160, 192]
    (told,) = [e for e in events if e["kind"] == "passed_over"]
    assert told["nimg"] == 96 and sorted(told["checkpoints"]) == [f"{n:012d}" for n in (144, 192)]
