"""Makes `glyphs.zip` and `FONTS.tsv` from the larger archive of rendered glyphs.

    python sample_data/make_glyphs.py path/to/glyphs-32.zip

The source holds `<char>/<number>.png` and `metadata.jsonl` (file, font and package of each), and
`FONTS.tsv` (the version of each package). Kept are the capital letters from the packages of
`licences.tsv`, which was written by hand from the packages' copyright files. Same source, same
bytes: names are in order, dates are fixed, images keep their original encoding.
"""

from __future__ import annotations

import csv
import json
import string
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).parent
LETTERS = string.ascii_uppercase
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can state


def read_tsv(text: str) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a header; quotes are ordinary characters."""
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def make(source: Path, folder: Path) -> None:
    """Write `glyphs.zip` and `FONTS.tsv` into `folder`."""
    licences = {r["package"]: r for r in read_tsv((HERE / "licences.tsv").read_text("utf-8"))}
    images: dict[tuple[str, str], list[str]] = defaultdict(list)  # (package, font) -> names
    numbers: Counter[str] = Counter()
    with (
        zipfile.ZipFile(source) as archive,
        zipfile.ZipFile(folder / "glyphs.zip", "w", zipfile.ZIP_STORED) as target,
    ):
        root = next(n for n in archive.namelist() if n.endswith("metadata.jsonl")).rpartition("/")[
            0
        ]
        fonts = read_tsv(archive.read(f"{root}/FONTS.tsv").decode())
        versions = {row["package"]: row["version"] for row in fonts}
        records = map(json.loads, archive.read(f"{root}/metadata.jsonl").decode().splitlines())
        for record in sorted(records, key=lambda r: r["file"]):
            if record["char"] not in LETTERS or record["package"] not in licences:
                continue
            numbers[record["char"]] += 1
            name = f"{record['char']}/{numbers[record['char']]:04d}"
            entry = zipfile.ZipInfo(f"glyphs/{name}.png", EPOCH)
            entry.create_system = 3  # Unix, whatever machine this runs on
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, archive.read(f"{root}/{record['file']}"))
            images[record["package"], record["font"]].append(name)

    with (folder / "FONTS.tsv").open("w", encoding="utf-8", newline="") as file:
        file.write("package\tversion\tlicence\tcopyright\tfont\timages\n")
        for (package, font), names in sorted(images.items()):
            row = licences[package]
            fields = (versions[package], row["licence"], row["copyright"], font, " ".join(names))
            file.write("\t".join((package, *fields)) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python sample_data/make_glyphs.py path/to/glyphs-32.zip")
    make(Path(sys.argv[1]), HERE)
