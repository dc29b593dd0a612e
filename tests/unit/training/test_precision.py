"""`train.precision: auto`: what is chosen, that a resumed run keeps it, and where it is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import read_json
from gan_train.runs import checkpoint
from gan_train.runs.events import read_events
from gan_train.runs.runtime import PlainRuntime, device_name
from gan_train.training import precision
from tests.training import assert_same_bits, newest, run, tiny_config, weights

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, unit: str | None, gain: float) -> None:
    """Let the machine have this unit for bfloat16, and a convolution be so much faster in it."""
    monkeypatch.setattr(precision, "unit_of", lambda device: unit)
    monkeypatch.setattr(precision, "bf16_gain", lambda device: gain)


def settled(source: Path, folder: Path, wanted: str) -> str:
    config = tiny_config(source, folder, train__precision=wanted)
    return precision.settle(config, PlainRuntime(folder)).train.precision


@pytest.mark.parametrize(
    ("unit", "gain", "chosen"),
    [
        ("amx_bf16", 4.0, "bf16"),
        ("avx512_bf16", 1.5, "bf16"),
        ("avx512_bf16", 1.0, "float32"),  # the unit is there, and does not pay
        ("avx512_bf16", 0.1, "float32"),  # it is named, and something forbids its use
        (None, 0.07, "float32"),
        (None, 1.5, "float32"),  # a lucky measurement without a unit
    ],
)
def test_auto_takes_bf16_where_a_unit_pays(
    unit: str | None,
    gain: float,
    chosen: str,
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, unit, gain)
    assert settled(tiny_source, tmp_path, "auto") == chosen


def test_an_explicit_format_is_taken_with_a_warning_where_it_does_not_pay(
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine(monkeypatch, None, 1 / 15)
    with caplog.at_level(logging.WARNING):
        assert settled(tiny_source, tmp_path, "float32") == "float32"
        assert settled(tiny_source, tmp_path, "float64") == "float64"
        assert not caplog.records
        assert settled(tiny_source, tmp_path, "bf16") == "bf16"
    (record,) = caplog.records
    assert "15.0 times as slow in bf16 as in float32" in record.getMessage()
    assert "train.precision=auto" in record.getMessage()
    caplog.clear()
    machine(monkeypatch, "amx_bf16", 4.0)
    assert settled(tiny_source, tmp_path, "bf16") == "bf16"
    assert not caplog.records


def test_a_resumed_run_keeps_its_precision_on_another_machine(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where bf16 pays, resumed where it does not: the bits of an uninterrupted bf16 run."""

    def config(wanted: str, kimg: float) -> Config:
        changes = {"train__precision": wanted, "train__total_kimg": kimg}
        return tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048, **changes)

    whole = run(config("bf16", 0.192), tmp_path / "whole")
    machine(monkeypatch, "amx_bf16", 4.0)
    run_dir = run(config("auto", 0.096), tmp_path / "run")
    assert read_json(newest(run_dir) / "state.json")["config"]["train"]["precision"] == "bf16"
    machine(monkeypatch, None, 0.05)
    with pytest.raises(UserError, match=r"train\.precision: 'bf16' -> 'float32'"):
        run(config("float32", 0.192), run_dir)
    run(config("auto", 0.192), run_dir)
    for name in ("networks", "generator", "optimizers"):
        assert_same_bits(weights(run_dir, name), weights(whole, name))
    assert checkpoint.precision_of(run_dir) == "bf16"
    assert weights(run_dir).keys() == weights(whole).keys()


def test_the_event_log_tells_it(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, None, 0.05)
    run_dir = run(tiny_config(tiny_source, tmp_path, train__precision="auto"), tmp_path / "run")
    told = {e["kind"]: e for e in read_events(run_dir) if "precision" in e}
    assert {kind: event["precision"] for kind, event in told.items()} == {
        "start": "float32",
        "checkpoint": "float32",
    }
    assert told["start"]["device"] == device_name(CPU)


def test_a_damaged_state_is_passed_over(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048)
    run_dir = run(config, tmp_path / "run")
    (newest(run_dir) / "state.json").write_text("{")
    assert checkpoint.precision_of(run_dir) == "float32"
    assert checkpoint.precision_of(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("cpuinfo", "unit"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n", "amx_bf16"),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "avx512_bf16"),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", None),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n", "bf16"),
        ("flags\t\t: avx2 avx512_bf16\n\nflags\t\t: avx2\n", None),  # not on every core
        ("vendor_id\t: avx512_bf16\n", None),
        ("", None),
    ],
)
def test_units_are_read_from_linux_by_name(cpuinfo: str, unit: str | None) -> None:
    assert precision.unit_among(cpuinfo) == unit


def test_the_probe_measures_and_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    gain = precision.bf16_gain.__wrapped__(CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert 0.001 < gain < 1000
