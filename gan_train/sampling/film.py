"""Writes frames as a film: a folder of PNGs, an animated GIF, or an MP4 by `ffmpeg`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from PIL import Image
from torch import Tensor

from gan_train.errors import UserError
from gan_train.files.atomic import aside
from gan_train.images.origin import Origin, encoded
from gan_train.images.pixels import to_picture

_SIDE = 256  # pixels of smaller frames are repeated, up to about this side, to be visible
_GIF_RATE = 50.0  # frames a second; viewers slow down faster ones


def check(out: Path, frames: int, rate: float) -> None:
    """Raise UserError if `write` cannot write so many frames to `out`.

    The error is raised for another kind of file, a rate (frames per second) out of range, a missing
    ffmpeg, and a folder that holds frames of a longer film.
    """
    kind = out.suffix.lower()
    if kind not in ("", ".gif", ".mp4"):
        raise UserError(f"--out {out}: allowed: a name ending in .gif or .mp4, or a folder")
    limit = _GIF_RATE if kind == ".gif" else 240.0
    if not 1 <= rate <= limit:
        raise UserError(f"--fps {rate:g}: allowed: 1 to {limit:g}")
    if kind == ".mp4":
        _ffmpeg(out)
    if not kind:
        ours = {_frame_name(number) for number in range(frames)}
        others = sorted(p.name for p in out.glob("frame-*.png") if p.name not in ours)
        if others:
            raise UserError(
                f"--out {out} holds frames of a longer film ({others[0]} and on): delete them, or "
                "name another folder"
            )


def write(
    frames: Iterable[Tensor],
    out: Path,
    rate: float,
    loop: bool,
    origin: Callable[[int], Origin] | None = None,
) -> Path:
    """Write frames uint8 [C, R, R], C 1 or 3, `rate` of them a second; returns `out`. `origin` says
    of each frame that becomes a PNG where it comes from.

    With `loop` a GIF repeats without end, else it plays once. Frames of a GIF have 256 colours each
    and last a whole number of hundredths of a second.
    """
    pictures = map(to_picture, frames)
    if not out.suffix:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            path = out / _frame_name(number)
            if origin is None:
                picture.save(path)
            else:
                path.write_bytes(encoded(picture, origin(number)))
        return out
    large = map(_repeat_pixels, pictures)
    with aside(out) as file:
        if out.suffix.lower() == ".gif":
            repeat = {"loop": 0} if loop else {}
            first = next(large)
            first.save(
                file,
                format="GIF",
                save_all=True,
                append_images=large,
                duration=round(1000 / rate),
                **repeat,
            )
        else:
            _write_video(large, Path(file.name), _ffmpeg(out), rate)
    return out


def _frame_name(number: int) -> str:
    return f"frame-{number:05d}.png"


def _repeat_pixels(picture: Image.Image) -> Image.Image:
    factor = max(1, _SIDE // picture.width)
    size = (factor * picture.width, factor * picture.height)
    return picture.resize(size, Image.Resampling.NEAREST)


def _ffmpeg(out: Path) -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(
            f"--out {out} needs the program ffmpeg, which is not on the PATH: install it, or name "
            "a .gif or a folder of frames"
        )
    return program


def _write_video(pictures: Iterator[Image.Image], path: Path, program: str, rate: float) -> None:
    """Write an MP4 by sending raw pixels to ffmpeg. Raises UserError with the end of ffmpeg's
    output if it fails."""
    first = next(pictures)
    command = [program, "-loglevel", "error", "-y"]
    command += ["-f", "rawvideo", "-pixel_format", "gray" if first.mode == "L" else "rgb24"]
    command += ["-video_size", f"{first.width}x{first.height}", "-framerate", f"{rate:g}"]
    command += ["-i", "pipe:0", "-pix_fmt", "yuv420p"]  # every player knows this pixel format
    command += ["-movflags", "+faststart", "-f", "mp4", str(path.absolute())]
    taken = True
    with tempfile.TemporaryFile() as said:
        try:
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
            ) as process:
                assert process.stdin is not None
                for picture in chain([first], pictures):
                    process.stdin.write(picture.tobytes())
        except BrokenPipeError:  # the program ended early, and its output says why
            taken = False
        if process.returncode != 0 or not taken:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines()[-3:]
            raise UserError(
                f"ffmpeg failed with status {process.returncode}: {' / '.join(words)}; name a .gif "
                "or a folder of frames instead"
            )
