"""What the runner of the fuzz tests calls a finding."""

from __future__ import annotations

import time

from tests.fuzz.runner import fuzz, mutated

SEEDS = [bytes(range(64)), b"\x89" * 3000]


def test_inputs_depend_on_seed_and_number_alone() -> None:
    inputs = [mutated(SEEDS, 0, number, [b"word"]) for number in range(200)]
    assert inputs == [mutated(SEEDS, 0, number, [b"word"]) for number in range(200)]
    assert len({*inputs}) > 150
    assert mutated(SEEDS, 1, 7) != mutated(SEEDS, 0, 7)


def test_errors_time_and_memory_are_findings() -> None:
    def target(data: bytes) -> None:
        match len(data) % 5:
            case 0:
                raise ValueError("promised")
            case 1:
                raise LookupError("not promised")
            case 2:
                begun = time.process_time()
                while time.process_time() < begun + 10:
                    pass
            case 3:
                try:
                    bytearray(8 << 30)  # more than the process can have freed meanwhile
                except MemoryError as error:
                    raise ValueError("promised, but at what cost") from error

    report = fuzz(target, SEEDS, (ValueError,), 60, seconds=0.02, megabytes=100)
    assert report.read and report.refused
    found = {len(finding.data) % 5: finding.what for finding in report.findings}
    assert "not promised" in found[1] and "0.02 s" in found[2] and "MemoryError" in found[3]
    assert set(found) == {1, 2, 3}
    again = fuzz(target, SEEDS, (ValueError,), 1, start=report.findings[0].number, seconds=0.02)
    assert again.findings[0].data == report.findings[0].data
