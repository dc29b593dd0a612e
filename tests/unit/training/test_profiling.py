"""A profile of a real run, on request."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from gan_train.runs import run_folder
from gan_train.training.profiling import WARM_UP
from tests.training import assert_same_bits, run, tiny_config, weights


def test_a_profile_is_a_trace_of_some_steps_and_changes_nothing(
    tiny_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        plain = run(tiny_config(tiny_source, tmp_path), tmp_path / "plain")
        assert not (plain / "profile").exists() and "perfetto" not in caplog.text
        config = tiny_config(tiny_source, tmp_path, train__profile_steps=3)
        profiled = run(config, tmp_path / "profiled")
    for name in ("networks", "generator", "optimizers"):
        assert_same_bits(weights(profiled, name), weights(plain, name))
    (path,) = (profiled / "profile").iterdir()
    assert run_folder.newest_trace(profiled) == path and run_folder.newest_trace(plain) is None
    assert str(path) in caplog.text
    with gzip.open(path, "rt") as file:
        trace = json.load(file)["traceEvents"]
    names = {event["name"] for event in trace}
    assert {f"ProfilerStep#{WARM_UP + i}" for i in range(3)} <= names
    assert f"ProfilerStep#{WARM_UP + 3}" not in names
    assert any("convolution" in name for name in names), "operators are in it"


def test_a_run_that_ends_before_leaves_what_was_recorded(tiny_source: Path, tmp_path: Path) -> None:
    steps = WARM_UP + 2
    config = tiny_config(
        tiny_source, tmp_path, train__profile_steps=100, train__total_kimg=steps * 0.016
    )
    run_dir = run(config, tmp_path / "run")
    run(config, run_dir)  # has nothing to train, and so nothing to record
    (path,) = (run_dir / "profile").iterdir()
    with gzip.open(path, "rt") as file:
        names = {event["name"] for event in json.load(file)["traceEvents"]}
    assert f"ProfilerStep#{steps - 1}" in names
