"""Reads the seeds that a user types."""

from __future__ import annotations

from collections.abc import Sequence

from gan_train.errors import UserError

LARGEST_SEED = 2**63 - 1


def text_of(numbers: Sequence[int]) -> str:
    """The shortest text that `seeds` reads as these numbers, with runs of three or more as
    ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(
        f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts
    )


def seeds(text: str, option: str = "--seeds", most: int = 100_000) -> list[int]:
    """The numbers in a text such as `0-63` or `1,2,5`. Raises UserError for anything else, and for
    more than `most`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{option} {text}: allowed: numbers and ranges, such as 0-63 or 1,2,5")
        if max(int(first), int(last or first)) > LARGEST_SEED:
            raise UserError(f"{option} {text}: allowed: at most {LARGEST_SEED}")
        start, end = int(first), int(last if dash else first) + 1
        if len(found) + end - start > most:
            raise UserError(f"{option} {text}: allowed: at most {most} images at once")
        found += range(start, end)
    if not found:
        raise UserError(f"{option} {text}: holds no number")
    return found
