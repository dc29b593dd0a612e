"""What leaves the project from a registered version, by the commands as they are typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_train import recipes
from gan_train.images.origin import kept
from gan_train.images.pixels import to_uint8
from gan_train.inference import Generator
from pipelines.cli.main import main
from pipelines.registry import versions
from pipelines.registry.tracking import connect
from tests.browser import opened
from tests.pipelines import registry_runs

pytestmark = pytest.mark.slow
MODEL = "models:/progan-tiny"
Said = dict[str, str]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two versions that differ in score, data and settings; both were scored on
    the same images."""
    folder = tmp_path_factory.mktemp("workspace")
    data = registry_runs.index()
    counts = dict(zip(data.classes, data.class_counts, strict=True)) | {"A": 170, "C": 30}
    grown = data.model_copy(
        update={
            "content_hash": "cd" * 32,
            "classes": tuple(counts),
            "class_counts": tuple(counts.values()),
        }
    )
    for number, (index, nimg, score) in enumerate(((data, 64_000, 50.0), (grown, 96_000, 40.0))):
        config = registry_runs.config(folder)
        if number:
            source = "<img src=x onerror=alert(1)>"
            config = recipes.change(config, {"seed": 7, "data.source": source})
        run = registry_runs.Run(config, index, f"run-{number + 1}")
        run.scored_on = data
        run.metrics(nimg, images_per_second=400.0, memory_gib=0.5)
        run.checkpoint(nimg, score, error=0.5)
        run.end(nimg)
        versions.register_best(run.config, run.folder, run.index, {})
    return folder


def done(*arguments: object) -> bool:
    return main([str(argument) for argument in arguments]) == 0


def test_a_version_is_exported_and_its_page_has_the_figure(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    out, place = tmp_path / "x.onnx", ("--set", f"workspace={workspace}")
    assert done("export", f"{MODEL}/1", "--out", out, "--images", "70", *place)
    said = capsys.readouterr().out
    tags = connect(registry_runs.config(workspace)).get_model_version("progan-tiny", "1").tags
    assert "differ by at most" in tags["export_onnx"] and "on 70 images" in tags["export_onnx"]
    assert tags["export_onnx"].partition(";")[0] in said
    assert "inputs      z float32 [n, 8]; label int64 [n]\n" in said

    model = onnx.load(out)
    about = {entry.key: entry.value for entry in model.metadata_props}["gan-train"]
    assert '"model": "models:/progan-tiny/1"' in about and tags["weights_sha256"] in about
    assert [side.dim_param for side in model.graph.input[0].type.tensor_type.shape.dim] == ["n", ""]
    generator = Generator.load(versions.download(registry_runs.config(workspace), "1"))
    z, label = generator.latents(range(5)), torch.arange(5) % 3
    (image,) = onnxruntime.InferenceSession(out).run(None, {"z": z.numpy(), "label": label.numpy()})
    apart = to_uint8(torch.from_numpy(image)).int() - generator.images(z, label).int()
    assert image.shape == (5, 1, 8, 8) and apart.abs().max() <= 1


def said_of(picture: Path, place: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Said:
    """What `whence` says of a picture, by label, and the exit status as `status`."""
    capsys.readouterr()
    status = main(["whence", str(picture), *place])
    lines = capsys.readouterr().out.splitlines()
    return {line[:11].strip(): line[12:] for line in lines} | {"status": str(status)}


def test_a_picture_says_where_it_comes_from_and_is_drawn_again(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--set", f"workspace={workspace}")
    grid, folder = tmp_path / "grid.png", tmp_path / "images"
    assert done("generate", MODEL, "--version", "2", "--seeds", "0-6,9", "--out", grid, *place)
    assert done("generate", f"{MODEL}/1", "--seeds", "4,5", "--out", folder, *place)
    of_grid, of_image = (said_of(p, place, capsys) for p in (grid, folder / "5.png"))
    weights = connect(registry_runs.config(workspace)).get_model_version("progan-tiny", "2").tags
    assert of_grid == {
        "model": f"{MODEL}/2",
        "run": "run-2",
        "weights": weights["weights_sha256"],
        "made by": "gan-train 0.1.0, generate",
        "seeds": "0-6,9",
        "truncation": "1.0",
        "drawn again": "identical",
        "status": "0",
    }
    assert (of_image["seeds"], of_image["class"]) == ("5", "A")  # the second of classes in turn
    assert of_image["status"] == "0"

    # a changed picture, one whose model is not here, and frames of a film
    with Image.open(grid) as opened:
        pixels, info = np.asarray(opened).copy(), kept(opened)
    pixels[0, 0] ^= 64
    Image.fromarray(pixels).save(grid, pnginfo=info)
    changed = said_of(grid, place, capsys)
    assert changed["status"] == "1" and "bytes differ by up to 64" in changed["drawn again"]
    elsewhere = said_of(grid, ("--set", f"workspace={tmp_path}"), capsys)
    assert elsewhere["status"] == "1" and "nothing is registered" in elsewhere["drawn again"]
    other = said_of(folder / "5.png", ("--model", f"{MODEL}/2", *place), capsys)
    assert other["status"] == "1" and "has other weights" in other["drawn again"]
    walk = ("interpolate", f"{MODEL}/1", "--seeds", "1,7", "--class", "B", "--frames", "4")
    assert done(*walk, "--out", tmp_path / "walk", *place)
    frame = said_of(tmp_path / "walk" / "frame-00003.png", place, capsys)
    assert (frame["frame"], frame["class"], frame["status"]) == ("3", "B", "0")


def test_two_versions_are_compared_on_a_page(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, out = ("--set", f"workspace={workspace}"), tmp_path / "diff.html"
    assert done("diff", f"{MODEL}/1", f"{MODEL}/2", "--out", out, *place)
    said, page = capsys.readouterr().out, out.read_text()
    assert "version 2 has the lowest Fréchet distance: 40.0 ± 0.5, before version 1 50.0" in said
    assert "Between two trainings that is better, 96% sure (between seeds 4.03, assumed, " in said
    assert "What differs: 1 setting, data." in said and "  seed: 0 -> 7\n" in said
    assert "  class C: – -> 30 images\n" in said and "  class A: 100 images -> 170 images" in said
    assert page.count("<img") == 2 and "<script" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "<img src=x" not in page

    # the page lies beside the newer version
    client = connect(registry_runs.config(workspace))
    newer = client.get_model_version("progan-tiny", "2").tags["logged_model"]
    files = [file.path for file in client.list_logged_model_artifacts(newer, "diff")]
    assert files == ["diff/version-1.html"]

    # `compare` of versions is the same; what is no pair is refused
    again = tmp_path / "again.html"
    assert done("compare", f"{MODEL}/1", f"{MODEL}@champion", "--out", again, *place)
    assert "version 2 has the lowest" in capsys.readouterr().out and again.exists()
    for words, message in (
        (("diff", f"{MODEL}/1", f"{MODEL}/1"), "are both models:/progan-tiny/1"),
        (("diff", f"{MODEL}/1", "demo"), "demo: allowed: models:/NAME/VERSION"),
        (("compare", f"{MODEL}/1", f"{MODEL}/2", "--kimg", "1"), "without training"),
        (("compare", "demo", "demo"), "name a budget"),
    ):
        assert main([*words, *place]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_of_two_versions_in_a_browser(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "diff.html"
    place = ("--set", f"workspace={workspace}", "--no-artifact")
    assert done("diff", f"{MODEL}/1", f"{MODEL}/2", "--out", out, *place)
    looks = "<script>document.title = [...document.images].map(i => i.naturalWidth)" + (
        " + ' ' + document.querySelectorAll('.pair figure').length"
        " + ' ' + (document.documentElement.scrollWidth <= innerWidth)</script>"
    )
    out.write_text(out.read_text().replace("</body>", f"{looks}</body>"), encoding="utf-8")
    shown = opened(out.as_uri(), tmp_path / "browser")
    assert "<title>64,64 2 true</title>" in shown, shown[:500]
