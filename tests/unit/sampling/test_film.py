"""Frames become files: number, order, pace and repetition, and what stops it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.errors import UserError
from gan_train.sampling import film


def frames(count: int, channels: int = 1) -> Tensor:
    """uint8 [count, C, 8, 8]: ever brighter, with a corner that tells up from down."""
    levels = torch.arange(count, dtype=torch.uint8) * 20 + 20
    images = levels[:, None, None, None].repeat(1, channels, 8, 8)
    images[:, 0, :4, :4] = 255
    return images


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a program named ffmpeg, and nothing else, on the PATH."""
    folder.mkdir()
    file = folder / "ffmpeg"
    file.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{code}")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_folder_of_frames(tmp_path: Path) -> None:
    out = film.write(frames(3), tmp_path / "walk", 25, False)
    names = [path.name for path in sorted(out.iterdir())]
    assert names == ["frame-00000.png", "frame-00001.png", "frame-00002.png"]
    with Image.open(out / names[2]) as picture:
        assert np.array_equal(np.asarray(picture), frames(3)[2, 0].numpy())
    # a shorter film would be followed by the rest of this one
    with pytest.raises(UserError, match=r"holds frames of a longer film \(frame-00002.png"):
        film.check(out, 2, 25)
    film.check(out, 3, 25)


@pytest.mark.parametrize(("loop", "channels"), [(True, 1), (False, 3)])
def test_a_gif(loop: bool, channels: int, tmp_path: Path) -> None:
    out = film.write(frames(7, channels), tmp_path / "new" / "walk.gif", 20, loop)
    with Image.open(out) as gif:
        assert gif.n_frames == 7 and gif.size == (256, 256)
        assert gif.info.get("loop") == (0 if loop else None)
        for number in range(7):
            gif.seek(number)
            assert gif.info["duration"] == 50  # milliseconds
            pixels = np.asarray(gif.convert("RGB"))
            assert pixels[-1, -1].tolist() == [20 + 20 * number] * 3
            assert pixels[0, 0, 0] == 255
    assert [path.name for path in out.parent.iterdir()] == ["walk.gif"]


def test_an_mp4_is_refused_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs the program ffmpeg, .* install it, or name a .gif"):
        film.check(tmp_path / "walk.mp4", 2, 25)


@pytest.mark.parametrize(("channels", "form"), [(1, "gray"), (3, "rgb24")])
def test_an_mp4_gets_all_pixels(
    channels: int, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "pathlib.Path(sys.argv[-1]).write_bytes(sys.stdin.buffer.read())\n"
        "pathlib.Path(sys.argv[0]).with_name('asked').write_text(' '.join(sys.argv[1:]))\n"
    )
    program(tmp_path / "bin", monkeypatch, code)
    out = tmp_path / "walk.mp4"
    film.check(out, 3, 12.5)
    film.write(frames(3, channels), out, 12.5, True)
    asked = (tmp_path / "bin" / "asked").read_text()
    assert (
        f"-f rawvideo -pixel_format {form} -video_size 256x256 -framerate 12.5 -i pipe:0" in asked
    )
    assert "-pix_fmt yuv420p" in asked and "-f mp4 /" in asked
    got = np.frombuffer(out.read_bytes(), np.uint8).reshape(3, 256, 256, channels)
    assert np.array_equal(got[:, ::32, ::32], frames(3, channels).permute(0, 2, 3, 1).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "walk.mp4"]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_mp4_by_ffmpeg_itself(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written and read back by the real program: every frame, its pace, and within what the codec
    loses its pixels."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(ffmpeg)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    out = film.write(frames(7, channels), tmp_path / "walk.mp4", 20, False)
    about = subprocess.run([ffmpeg, "-i", out], capture_output=True, text=True).stderr
    assert all(word in about for word in ("Duration: 00:00:00.35", "yuv420p", "256x256", "20 fps"))
    pixels = ["-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run([ffmpeg, "-i", out, *pixels], capture_output=True, check=True).stdout
    pictures = np.frombuffer(read, np.uint8).reshape(7, 256, 256, 3).astype(int)
    for number, picture in enumerate(pictures):
        assert abs(picture[-32:, -32:, 1] - (20 + 20 * number)).max() < 12
        assert picture[:96, :96, 0].mean() > 220


@pytest.mark.parametrize("reads", [True, False])
def test_when_ffmpeg_fails(reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it ends before it has read all, so that the pipe breaks."""
    code = "sys.stdin.buffer.read()\n" if reads else ""
    code += "pathlib.Path(sys.argv[-1]).touch()\nsys.exit('Unknown encoder')\n"
    program(tmp_path / "bin", monkeypatch, code)
    with pytest.raises(UserError, match="ffmpeg failed with status 1: Unknown encoder"):
        film.write(frames(40), tmp_path / "walk.mp4", 25, False)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("walk.avi", 25, r"walk.avi: allowed: a name ending in .gif or .mp4, or a folder"),
        ("walk.gif", 60, r"--fps 60: allowed: 1 to 50"),
        ("walk", 0, r"--fps 0: allowed: 1 to 240"),
    ],
)
def test_films_that_cannot_be_had(name: str, rate: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        film.check(tmp_path / name, 2, rate)
