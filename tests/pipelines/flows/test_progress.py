"""What a person reads while a run goes on and at its end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from gan_train.adversary import Losses, Phase, Stage
from pipelines.cli.summary import table
from pipelines.flows.progress import Display, LineReader, Warnings, score_line
from pipelines.flows.time_left import Forecast


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LineReader(path)
    assert reader.new() == []
    with path.open("w") as file:
        for text, expected in (("one\ntw", ["one"]), ("o", []), ("\nthree\n", ["two", "three"])):
            file.write(text)
            file.flush()
            assert reader.new() == expected
    assert LineReader(path).new() == []


def test_a_warning_of_several_workers_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "workers.log"
    path.write_text("2026 WARNING worker 0: of an earlier attempt\n")
    warnings = Warnings(path)
    with path.open("a") as file:
        file.write("2026-01-31 12:00:00,000 INFO worker 0: resumed\n")
        for worker in (0, 1):
            file.write(f"2026-01-31 12:00:00,000 ERROR worker {worker}: DAMAGED CHECKPOINT: x\n")
    assert warnings.new() == ["ERROR: DAMAGED CHECKPOINT: x"]
    assert warnings.new() == []


def event(kind: str, nimg: int, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "nimg": nimg, "time_ms": nimg, **fields}


def test_without_a_terminal_there_are_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    stage = Stage("all", 4000, 8, 16, (Phase("G", "G", lambda *_: Losses({})),))
    forecast = Forecast([stage], 200_000, [])
    forecast.nimg = 1000
    display = Display(forecast, stream)
    values = {"resolution": 8.0, "alpha": 0.25, "images_per_second": 512.0, "loss/D": 1.25}
    display.show(event("start", 0, precision="bf16"))
    display.show(event("metrics", 2000, values=values))
    scores = {"fid": 84.0, "fid_null": 5.0, "recall_x": 0.5}
    display.show(event("checkpoint", 2000, scores=scores, resolution=8.0))
    display.show(event("metrics", 1500, values=values))  # seen again after a restart
    display.close()
    lines = stream.getvalue().splitlines()
    assert lines.pop(0) == "training in bf16"
    assert lines[0].split() == [
        *("2.0", "of", "200.0", "kimg,", "7", "min", "left"),
        *("8px", "alpha", "0.25", "512", "img/s", "D", "1.25"),
    ]
    assert lines[1].split() == ["2.0", "kimg", "8px", "fid", "84", "(real", "5)", "recall_x", "0.5"]
    assert len(lines) == 2 and display.done == 2000


def test_the_null_value_stands_beside_every_distance() -> None:
    rows = [
        {"kimg": 13.0, "resolution": 4.0, "alpha": 1.0, "fid": 200.0, "fid_null": 5.4, "x": 1.0},
        {"kimg": 108.0, "resolution": 32.0, "alpha": 1.0, "fid": 84.0, "fid_null": 5.4},
    ]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines == [
        ["13k@4px", "108k@32px", "real"],
        ["fid", "200", "84", "5.4"],
        ["x", "1", "-", "-"],
    ]


def test_each_reference_is_called_what_it_is() -> None:
    scores = {"fd": 5.0, "fd_null": 1.0, "fd_identity": 4.0, "kid": 0.3, "kid_null": 0.1}
    event = {"kind": "checkpoint", "nimg": 1000, "scores": scores}
    assert score_line(event) == "fd 5 (identity 4)  kid 0.3 (real 0.1)"
    rows = [{"kimg": 1.0, "psnr_y": 30.0, "psnr_y_bicubic": 28.0}]
    assert table(rows).split() == ["1k", "bicubic", "psnr_y", "30", "28"]
    assert "identity or real" in table([{"kimg": 1.0, **scores}])
