"""The page of a run: whole, standing alone, and text where names are text."""

from __future__ import annotations

import json
import re
from pathlib import Path

from PIL import Image

from gan_train.diagnosis import page
from gan_train.diagnosis.charts import Line, chart
from gan_train.runs.events import LOG_NAME
from tests.unit.diagnosis.logs import Event, checkpoint, scored, start, ticks, variety
from tests.unit.test_text import HOSTILE


def written(run_dir: Path, *events: Event) -> str:
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"time_ms": 0, **event}) + "\n" for event in events)
    (run_dir / LOG_NAME).write_text(lines)
    return page.write(run_dir).read_text()


def test_it_tells_what_a_run_has_and_shows_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-1"
    (run_dir / "samples").mkdir(parents=True)
    pictures = []
    for number in range(1, 9):
        Image.new("L", (40, 30), 20 * number).save(run_dir / f"samples/{number}.png")
        pictures.append({"kind": "image", "nimg": 1000 * number, "path": f"samples/{number}.png"})
    told = [{"name": "mode collapse", "since": 20_000, "evidence": "two samples differ by 30%"}]
    ill = [variety(0.9), variety(0.3), variety(0.3)]
    text = written(
        run_dir,
        start(device="Abacus"),
        *ticks({"loss/D": [1.0] * 9, "images_per_second": [100.0] * 9}),
        *pictures,
        *scored(90, 60, 50, each=ill),
        {"kind": "diagnosis", "nimg": 30_000, "found": told},
    )
    assert "Mode collapse <small>since 20 kimg" in text
    assert "This state is never registered" in text
    assert "No sign of disease" not in text
    assert "Fréchet distance, lower is better" in text
    assert "1,000 in 10 classes, 32 px" in text and "Abacus" in text
    assert text.count("data:image/webp") == 5
    assert 'alt="Samples at 8 kimg"' in text and 'alt="Samples at 1 kimg"' in text
    assert 'http-equiv="refresh"' in text, "it goes on"
    assert not re.search(r"(src|href)=[\"'](?!data:)|<script|@import|url\(", text)
    ended = written(run_dir, start(), {"kind": "end", "nimg": 0, "status": "finished"})
    assert "No sign of disease" in ended and "refresh" not in ended


def test_names_are_text(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        text = written(
            tmp_path / str(number),
            start(device=name),
            *ticks({f"loss/{name}": [1.0, 2.0]}),
            checkpoint(1, 9.0, **{f"psnr_{name}": 2.0}),
            {"kind": "passed_over", "nimg": 1000, "checkpoints": {name: name}},
            {"kind": "rolled_back", "nimg": 1000, "number": 1, "why": name},
        )
        assert not re.search(r"<(img src=x|script)|\x1b|\x9b|\u202e", text)


def test_a_chart_of_any_numbers() -> None:
    assert chart("none", [Line("a", [(1, float("nan"))])]) is None
    for ys in ([0.0], [5.0, 5.0], [-3.0, 1e9], [1e-9, 1e9], [1e300, 1e-300], [0.1] * 5000):
        drawn = chart("any", [Line("a", list(enumerate(ys)), [0.1] * len(ys))], [("level", 2.0)])
        assert drawn is not None
        places = [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", drawn.svg)]
        assert all(0 <= x <= 560 for x in places)
    long = chart("long", [Line("a", [(x, float(x)) for x in range(5000)])])
    assert long is not None and long.svg.count("L") <= 240
