"""`gan-train bench-data`: all forms read and write the same pictures. Figures are not tested."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_train.bench import data_forms, data_set
from gan_train.bench.data import measure
from gan_train.bench.data_options import EPILOG
from gan_train.data.index import Index
from gan_train.data.loader import read_images
from gan_train.errors import UserError
from pipelines.cli.main import main

IMAGES = 12 * data_forms.BATCH


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 768 pictures of 8 pixels in 5 shards, and as a folder."""
    place = tmp_path_factory.mktemp("data")
    pictures = data_set.draw(8)
    data_set.write_shards(pictures, place / "shards", IMAGES, 5)
    data_set.write_folder(pictures, place / "folder", IMAGES)
    return place


def test_the_data_set_is_what_its_index_says(root: Path) -> None:
    index = Index.load(root / "shards")
    index.verify(root / "shards")
    assert (index.samples, len(index.shards), index.resolution) == (IMAGES, 5, 8)
    images, labels = read_images(index, root / "shards", 0, IMAGES)
    assert labels is not None
    assert tuple(torch.bincount(labels, minlength=10).tolist()) == index.class_counts
    for number in (0, 7, 499, 500, 767):
        with Image.open(io.BytesIO(data_set.draw(8).file(number))) as image:
            expected = np.asarray(image).transpose(2, 0, 1)
        assert (images[number].numpy() == expected).all()
        assert labels[number] == data_set.label_of(number)


@pytest.mark.parametrize("name", data_forms.LOADERS)
def test_every_loader_shows_each_picture_once_an_epoch(root: Path, name: str) -> None:
    index = Index.load(root / "shards")
    images, labels = read_images(index, root / "shards", 0, IMAGES)
    assert labels is not None
    expected = Counter(
        (image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    seen, firsts = Counter[tuple[bytes, int]](), []
    for batch, of_batch in islice(data_forms.LOADERS[name](root, 0), 12):
        assert batch.dtype == torch.uint8 and batch.shape == (64, 3, 8, 8)
        assert of_batch is not None
        pairs = zip(batch, of_batch.tolist(), strict=True)
        seen.update((image.numpy().tobytes(), label) for image, label in pairs)
        firsts.append(int(of_batch[0]))
    assert seen == expected
    assert len(set(firsts)) > 1  # shuffled: in stored order each would be 0, 4, 8, 2 or 6


def test_both_converters_store_the_same_pixels(root: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    large = tmp_path / "large"
    data_set.write_folder(data_set.draw(16), large, 30)
    assert data_forms.convert(large, tmp_path / "theirs", 8, 20) == 30
    assert data_forms.shard_folder(large, tmp_path / "ours", 8, 20) == 30

    def pixels(folder: Path) -> list[bytes]:
        found = []
        for path in folder.rglob("*.tar"):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(".png"):
                        content = tar.extractfile(member)
                        assert content is not None
                        found.append(np.asarray(Image.open(content)).tobytes())
        return sorted(found)

    assert len(list((tmp_path / "theirs").glob("*.tar"))) == 2
    assert pixels(tmp_path / "ours") == pixels(tmp_path / "theirs")
    assert len(pixels(tmp_path / "ours")) == 30


@pytest.mark.slow
def test_the_command_reports_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", "700", "--shards", "7", "--side", "8", "--rounds", "1"]
    assert main(["bench-data", *arguments, "--seconds", "0.1", "--folder", str(tmp_path)]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].startswith("700 pictures of 8 px in 7 shards")
    assert [line[:34].strip() for line in lines[1:]] == [
        "index",
        "order of an epoch",
        "first batch",
        "memory, decoding itself",
        "memory of a loader process",
        "loading, images/s",
        "loading: times folder, PIL",
        "loading: times WebDataset",
        "sharding 8 px, images/s",
        "sharding: times PIL, TarWriter",
        "sharding 16 to 8 px, images/s",
        "sharding: times PIL, TarWriter",
        "start on finished shards",
    ]
    for line in lines[3:7]:
        assert re.search(r"gan-train [\d.,]+.*; folder, PIL [\d.,]+.*; WebDataset [\d.,]+", line)
    assert all(float(line[34:].split()[0]) > 0 for line in lines if "times" in line), lines
    assert "loading, round 1 of 1: WebDataset" in told.err
    assert told.err.splitlines()[-1].startswith("11 of 11: sharding 16 to 8 px")
    assert list(tmp_path.iterdir()) == []  # nothing is kept


def test_more_shards_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="--images=100: allowed are at least as many as --shards"):
        next(measure(100, 200, 8, 1.0, 1, None))


def test_the_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench-data", "--images", "7"])
    assert error.value.code == 2
    assert "7: allowed are whole numbers from 100 on" in capsys.readouterr().err
    assert "gan-train bench-data --images 20000" in EPILOG
