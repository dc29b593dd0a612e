"""The event log is read in one way, and tells of a run each event once, and nothing abandoned."""

from __future__ import annotations

import json
import math
from pathlib import Path

from gan_train.runs.events import (
    LOG_NAME,
    EventLog,
    EventReader,
    last_event,
    read_events,
    read_with_offsets,
)
from gan_train.runs.run_folder import finished


def told(run_dir: Path) -> list[tuple[str, int]]:
    return [(event["kind"], event["nimg"]) for event in read_events(run_dir)]


def raw(run_dir: Path) -> list[tuple[str, int]]:
    return [(event["kind"], event["nimg"]) for event, _ in read_with_offsets(run_dir)]


def metrics(log: EventLog, nimg: int, loss: float, **values: float) -> None:
    log.append("metrics", nimg, values={"loss/D": loss, **values})


# ---- reading -----------------------------------------------------------------------------------


def test_a_reader_follows_complete_lines(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert reader.new() == [] and reader.offset == 0
    one, two = '{"kind": "a", "nimg": 1}\n', '{"kind": "b", "nimg": 2}\n'
    with (tmp_path / LOG_NAME).open("w") as file:
        for text, expected in ((one + two[:5], ["a"]), (two[5:-1], []), (two[-1:], ["b"])):
            file.write(text)
            file.flush()
            assert [event["kind"] for event in reader.new()] == expected
    assert reader.offset == len(one + two)
    assert EventReader(tmp_path, len(one)).new() == [{"kind": "b", "nimg": 2}]
    assert EventReader.at_end(tmp_path).new() == []
    behind = [offset for _, offset in read_with_offsets(tmp_path)]
    assert behind == [len(one), len(one + two)]


def test_a_reader_at_the_end_sees_what_replaces_a_torn_line(tmp_path: Path) -> None:
    metrics(EventLog(tmp_path), 10, 1.0)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"kind": "metrics", "nimg": 20, "val' + "x" * 9000)
    reader = EventReader.at_end(tmp_path)
    metrics(EventLog(tmp_path), 20, 2.0)
    assert [event["nimg"] for event in reader.new()] == [20]


def test_the_last_event_of_long_lines(tmp_path: Path) -> None:
    assert last_event(tmp_path) is None
    log = EventLog(tmp_path)
    for nimg in (1, 2, 3):
        log.append("metrics", nimg, values={f"value_{i}": 0.5 for i in range(1000)})
        last = last_event(tmp_path)
        assert last is not None and last["nimg"] == nimg


# ---- a run that repeats itself -----------------------------------------------------------------


def test_what_is_repeated_stands_once(tmp_path: Path) -> None:
    for speed in (100.0, 200.0):
        log = EventLog(tmp_path)
        metrics(log, 10, math.nan, images_per_second=speed, memory_gib=speed)
        log.append("image", 10, path="samples/10.png")
        log.append("checkpoint", 10, scores={"fid": math.nan}, tuple=(1, 2))
        metrics(log, 20, 2.0)
    assert raw(tmp_path) == [("metrics", 10), ("image", 10), ("checkpoint", 10), ("metrics", 20)]


def test_a_newer_version_that_logs_more_is_no_other_past(tmp_path: Path) -> None:
    metrics(EventLog(tmp_path), 10, 1.0)
    metrics(EventLog(tmp_path), 20, 2.0)
    log = EventLog(tmp_path)
    metrics(log, 10, 1.0, gradient_norm=3.0)
    metrics(log, 20, 2.0, gradient_norm=3.0)
    metrics(log, 30, 3.0, gradient_norm=3.0)
    assert raw(tmp_path) == [("metrics", 10), ("metrics", 20), ("metrics", 30)]


def test_another_past_is_cut_off_where_it_begins_to_differ(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for nimg in (10, 20, 30, 40):
        metrics(log, nimg, nimg)
        log.append("checkpoint", nimg, scores={"fid": nimg})
    again = EventLog(tmp_path)  # from the checkpoint at 10
    metrics(again, 20, 20)
    again.append("checkpoint", 20, scores={"fid": 20})
    metrics(again, 30, 31)
    again.append("checkpoint", 30, scores={"fid": 31})
    present = [(e["kind"], e["nimg"]) for e in read_events(tmp_path)]
    assert present == [(k, n) for n in (10, 20, 30) for k in ("metrics", "checkpoint")]
    assert [e["scores"]["fid"] for e in read_events(tmp_path) if e["kind"] == "checkpoint"] == [
        *(10, 20, 31)
    ]
    assert raw(tmp_path)[8:] == [("cut", 30), ("metrics", 30), ("checkpoint", 30)]
    third = EventLog(tmp_path)  # which repeats the new past, not the old one
    metrics(third, 30, 31)
    metrics(third, 40, 40)
    assert raw(tmp_path)[11:] == [("metrics", 40)], "what was abandoned says nothing any more"


def test_an_event_where_the_log_went_on_without_it_cuts(tmp_path: Path) -> None:
    """As after a change of `train.tick_kimg`, or of `train.total_kimg`."""
    log = EventLog(tmp_path)
    for nimg in (10, 20, 30):
        metrics(log, nimg, nimg)
    log.append("end", 30, status="finished")
    metrics(EventLog(tmp_path), 15, 15)
    assert told(tmp_path) == [("metrics", 10), ("metrics", 15)]
    EventLog(tmp_path).append("end", 12, status="finished")
    assert told(tmp_path) == [("metrics", 10), ("end", 12)]


def test_a_stop_in_a_repetition_cuts_nothing(tmp_path: Path) -> None:
    """As of a run that was killed at 30, taken up again, and stopped at 12."""
    log = EventLog(tmp_path)
    for nimg in (10, 20, 30):
        metrics(log, nimg, nimg)
    log.append("end", 30, status="finished")
    before = raw(tmp_path)
    for _ in range(2):  # the second time with nothing trained in between
        EventLog(tmp_path).append("end", 12, status="stopped")
    assert raw(tmp_path) == [*before, ("end", 12)]
    assert not finished(read_events(tmp_path))
    again = EventLog(tmp_path)
    for nimg in (20, 30):
        metrics(again, nimg, nimg)
    for _ in range(2):
        again.append("end", 30, status="finished")
    assert raw(tmp_path) == [*before, ("end", 12), ("end", 30)]
    assert finished(read_events(tmp_path))


def test_what_was_told_of_the_place_of_a_cut_is_kept(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append("image", 10, path="samples/10.png")
    metrics(log, 10, 1.0)
    metrics(log, 20, 2.0)
    again = EventLog(tmp_path)
    again.append("image", 10, path="samples/10.png")
    metrics(again, 10, 1.5)
    assert told(tmp_path) == [("image", 10), ("metrics", 10)]


def test_scores_measured_again_are_told_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    metrics(log, 10, 1.0)
    log.append("checkpoint", 10, scores={"fid": 3.0}, protocol={"images": 8})
    metrics(log, 20, 2.0)
    for _ in range(2):
        EventLog(tmp_path).append(
            "checkpoint", 10, scores={"fid": 2.0, "kid": 1.0}, protocol={"images": 16}
        )
    EventLog(tmp_path).append("checkpoint", 15, scores={"fid": 2.5}, protocol={"images": 16})
    assert raw(tmp_path) == [
        *(("metrics", 10), ("checkpoint", 10), ("metrics", 20)),
        *(("checkpoint", 10), ("checkpoint", 15)),
    ]


def test_a_log_whose_cut_was_torn_from_what_follows_it_goes_on(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for nimg in (10, 20, 30):
        metrics(log, nimg, nimg)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write(json.dumps({"kind": "cut", "nimg": 20, "time_ms": 0}) + '\n{"kind": "me')
    metrics(EventLog(tmp_path), 20, 21)
    assert told(tmp_path) == [("metrics", 10), ("metrics", 20)]
