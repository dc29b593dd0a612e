"""Whatever bytes stand in a run's files, a reader returns a value or says what is wrong."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.files.digests import sha256_of
from gan_train.runs import integrity
from gan_train.runs.checkpoint import newest_valid
from gan_train.runs.events import DAMAGED_NAME, LOG_NAME, EventLog, last_event, read_events
from gan_train.runs.integrity import Damaged, find_damage, read_manifest, read_scores
from gan_train.training.scoring import best_checkpoint, stored_scores
from tests.fuzz import runs
from tests.fuzz.runner import fuzz


def checkpoint(run_dir: Path, nimg: int = 64, value: float = 1.0) -> Path:
    folder = run_dir / "checkpoints" / f"{nimg:012d}"
    folder.mkdir(parents=True)
    for name in ("networks", "generator"):
        save_file({"a": torch.tensor([0.0, value])}, folder / f"{name}.safetensors")
    (folder / "generator.json").write_text("{}")
    return sealed(folder)


def sealed(folder: Path) -> Path:
    names = ("networks.safetensors", "generator.safetensors", "generator.json")
    write_json(folder / integrity.MANIFEST, {name: sha256_of(folder / name) for name in names})
    return folder


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "", "{", '{"a": 1}', '{"../x": "' + 64 * "0" + '"}', 9000 * "["]
)
def test_a_manifest_that_verifies_nothing_is_damage(text: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    assert find_damage(folder) is None
    (folder / integrity.MANIFEST).write_text(text)
    fault = find_damage(folder)
    assert fault is not None and integrity.MANIFEST in fault


@pytest.mark.parametrize(
    "curves",
    [[1], *({"a": {"count": n, "sums": sums}} for n, sums in ((0, [1]), (2**40, [1]), (1, [])))],
)
def test_curves_that_nobody_has_measured_are_damage(curves: object, tmp_path: Path) -> None:
    clock = {"step": 1, "nimg": 16}
    state = {"format": 1, "clock": clock, "stage": "", "config": {}, "data": "0" * 64}
    write_json(tmp_path / integrity.STATE, state | {"curves": {"a": {"count": 2, "sums": [0.5]}}})
    assert integrity.read_state(tmp_path).curves["a"].sums == (0.5,)
    write_json(tmp_path / integrity.STATE, state | {"curves": curves})
    with pytest.raises(Damaged, match="curves"):
        integrity.read_state(tmp_path)


def test_a_later_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    manifest = read_manifest(folder)
    write_json(folder / integrity.MANIFEST, manifest | {"format": 1})
    assert find_damage(folder) is None
    write_json(folder / integrity.MANIFEST, manifest | {"format": 2})
    with pytest.raises(UserError, match=r"format 2, this one reads format 1\): update gan-train"):
        newest_valid(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_passed_over(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = checkpoint(tmp_path, 64)
    checkpoint(tmp_path, 128, value)
    assert newest_valid(tmp_path) == whole
    assert "DAMAGED CHECKPOINT" in caplog.text and "not finite" in caplog.text


@pytest.mark.parametrize(
    "data", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\x80\x04N.", b"\xff" * 8 + b"{}", b"\0" * 4096]
)
def test_a_file_that_is_whole_and_no_safetensors_is_damage(data: bytes, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "networks.safetensors").write_bytes(data)
    fault = find_damage(sealed(folder))
    assert fault is not None and fault.startswith("networks.safetensors is no safetensors file")


@pytest.mark.parametrize("text", ["", "[]", '{"scores": {}}', '{"scores": {"a": "b"}}', "\0\0"])
def test_damaged_scores_are_dropped_loudly(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(tmp_path)
    assert read_scores(folder) is None
    (folder / integrity.SCORES).write_text(text)
    with pytest.raises(Damaged, match=r"scores\.json"):
        read_scores(folder)
    assert stored_scores(folder) is None and best_checkpoint(tmp_path, "fid") is None
    assert "DAMAGED SCORES" in caplog.text


@pytest.mark.fault(
    "a line in the middle of the event log damaged",
    "it is set aside, named and counted; all other events stand",
)
@pytest.mark.parametrize(
    "line", [b"\0" * 512, b"[1]", b'{"kind": 3, "nimg": 1}', b'{"kind": "metrics", "nimg": 1}']
)
def test_a_damaged_line_of_the_log_is_set_aside(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path)
    for nimg in (10, 20, 30):
        log.append("metrics", nimg, values={"loss/D": 1.0})
    lines = (tmp_path / LOG_NAME).read_bytes().splitlines()
    (tmp_path / LOG_NAME).write_bytes(b"\n".join([lines[0], line, *lines[2:], line]) + b"\n")
    last = last_event(tmp_path)
    assert last is not None and last["nimg"] == 30
    with caplog.at_level(logging.ERROR):
        EventLog(tmp_path).append("end", 30, status="finished")
    assert "DAMAGED EVENT LOG: 2 lines" in caplog.text and DAMAGED_NAME in caplog.text
    aside = [json.loads(one) for one in (tmp_path / DAMAGED_NAME).read_text().splitlines()]
    assert [one["line"].encode().removesuffix(b"\n") for one in aside] == [line, line]
    assert [event["nimg"] for event in read_events(tmp_path)] == [10, 30, 30]


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """A hundred thousand inputs: python -m tests.fuzz.runs --inputs 100000"""
    read = runs.target(tmp_path)
    report = fuzz(read, runs.seeds(), runs.ALLOWED, 60, tokens=runs.TOKENS)
    assert not report.findings, report.findings[0].what
    assert report.refused > 30
