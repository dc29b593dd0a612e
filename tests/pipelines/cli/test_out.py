"""What leaves the project from a registered version, by the commands as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gan_train.images.pixels import to_uint8
from gan_train.inference import Generator
from pipelines.cli.main import main
from pipelines.registry import versions
from pipelines.registry.tracking import connect
from tests.pipelines import registry_runs

pytestmark = pytest.mark.slow
MODEL = "models:/progan-tiny"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two versions, which were trained on different data for different lengths."""
    folder = tmp_path_factory.mktemp("workspace")
    for number, (nimg, score) in enumerate(((64_000, 50.0), (96_000, 40.0)), start=1):
        run = registry_runs.Run(
            registry_runs.config(folder), registry_runs.index(), f"run-{number}"
        )
        run.checkpoint(nimg, score)
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
