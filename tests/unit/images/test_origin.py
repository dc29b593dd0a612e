"""What a picture says of its origin, and what is made of what anyone may have written there."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gan_train.errors import UserError
from gan_train.images.origin import KEY, Origin, chunk, kept, read


def picture(text: str | None, compressed: bool = False) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    if text is not None:
        info.add_text(KEY, text, zip=compressed)
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_what_is_written_is_read_and_a_smaller_copy_keeps_it() -> None:
    said = Origin(command="generate", model="models:/ä/3", seeds="0-3", classes=["\x1b[2J"])
    file, copy = io.BytesIO(), io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=chunk(said))
    assert read(file.getvalue(), "a.png") == said
    with Image.open(file) as opened:
        opened.resize((2, 2)).save(copy, "PNG", pnginfo=kept(opened))
    assert read(copy.getvalue(), "a.png") == said
    assert b"\x1b" not in file.getvalue()[:-40]  # JSON in ASCII


HOSTILE = [
    (None, "does not say where it comes from"),
    ("", "cannot be read"),
    ("{", "cannot be read"),
    ("[" * 100_000, "cannot be read"),
    ("1" * 100_000, "cannot be read"),
    ('{"command": "rm -rf"}', "command: Input should be"),
    ('{"command": "generate", "weights_sha256": "../../x"}', "weights_sha256"),
    ('{"command": "generate", "truncation": NaN}', "cannot be read"),
    ('{"command": "generate", "truncation": 1e999}', "truncation"),
    ('{"command": "generate", "frame": 1e300}', "frame"),
    (json.dumps({"command": "generate", "model": "m" * 501}), "model"),
    (json.dumps({"command": "generate", "classes": ["a"] * 1001}), "classes"),
    (json.dumps({"command": "generate", "seeds": "1," * 150_000}), "cannot be read"),
]


@pytest.mark.parametrize(("text", "named"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_cannot_be_read_is_a_sentence(text: str | None, named: str) -> None:
    with pytest.raises(UserError, match=named):
        read(picture(text), "a.png")


def test_files_that_are_no_pictures_or_explode(tmp_path: Path) -> None:
    bomb = picture(json.dumps({"command": "generate", "run": " " * 10**7}), compressed=True)
    for data in (b"", b"GIF89a", picture("{}")[:30], bomb):
        with pytest.raises(UserError, match="no PNG file that can be read"):
            read(data, "a.png")
    wide = bytearray(picture(None))
    wide[16:24] = (10**9).to_bytes(4, "big") * 2  # the header claims 10^18 pixels
    wide[29:33] = zlib.crc32(wide[12:29]).to_bytes(4, "big")
    with pytest.raises(UserError, match="no PNG file that can be read"):
        read(bytes(wide), "a.png")
