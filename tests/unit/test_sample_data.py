"""The shipped sample data: small enough, what it claims to be, and every image attributed."""

from __future__ import annotations

import csv
import io
import string
import zipfile
from collections import Counter
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[2] / "sample_data"
ALLOWED = {"OFL-1.0", "OFL-1.1", "OFL-1.1-RFN", "Apache-2.0", "MIT", "Bitstream-Vera"}
LIMIT = 5_000_000


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def allowed(expression: str) -> bool:
    """Whether an SPDX-like expression without parentheses permits use under `ALLOWED` alone."""
    choices = expression.split(" OR ")
    return any(all(term in ALLOWED for term in choice.split(" AND ")) for choice in choices)


def test_the_archive_holds_small_grey_letters_in_class_folders(glyphs: Path) -> None:
    assert glyphs.stat().st_size <= LIMIT
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(glyphs) as archive:
        for entry in archive.infolist():
            folder, letter, name = entry.filename.split("/")
            counts[letter] += 1
            assert (folder, name) == ("glyphs", f"{counts[letter]:04d}.png")
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            with Image.open(io.BytesIO(archive.read(entry))) as image:
                image.load()
                assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
                assert image.getextrema()[1] > 96, f"{entry.filename} is blank"
    assert set(counts) == set(string.ascii_uppercase)
    assert counts.total() == 8897
    assert f"{counts.total():,} pictures" in (FOLDER / "README.md").read_text("utf-8")


def test_every_image_is_attributed_once_under_an_allowed_licence(glyphs: Path) -> None:
    licences = {row["package"]: row for row in rows("licences.tsv")}
    attributed: Counter[str] = Counter()
    for row in rows("FONTS.tsv"):
        assert allowed(row["licence"]), row
        assert row["font"] and row["version"] and row["copyright"]
        entry = licences[row["package"]]
        assert (row["licence"], row["copyright"]) == (entry["licence"], entry["copyright"])
        attributed.update(row["images"].split())
    assert {row["package"] for row in rows("FONTS.tsv")} == set(licences)
    with zipfile.ZipFile(glyphs) as archive:
        images = {n.removeprefix("glyphs/").removesuffix(".png") for n in archive.namelist()}
    assert set(attributed) == images
    assert set(attributed.values()) == {1}


def test_the_licence_rule_refuses_what_is_only_partly_allowed() -> None:
    assert allowed("OFL-1.1 OR LGPL-2.1") and allowed("MIT AND Bitstream-Vera")
    assert not allowed("GPL-2.0-or-later") and not allowed("OFL-1.1 AND EPL-2.0")
