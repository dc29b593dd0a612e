"""Writes a generator as a file that other libraries run: ONNX, or a program of PyTorch (`.pt2`).

A file is kept only if what it answers is what the generator answers: it is read again by the
library that will run it, and compared on many images. `programs.py` says what goes in and comes
out.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gan_train.errors import UserError
from gan_train.files.atomic import aside
from gan_train.files.digests import sha256_of
from gan_train.images.origin import library
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter
from gan_train.sampling.programs import OUTPUT, Inputs, Program, programs
from gan_train.sampling.progress import progress_bar

Format = Literal["onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
BOUND = 1 / 255
"""The largest difference that is allowed, as a share of the range of pixels."""
ABOUT = "gan-train"
"""The key of a file's metadata under which a JSON object says what it is."""
_ONNX = ("onnx", "onnxscript", "onnxruntime")
_SIDES = {0: "n", 2: "h", 3: "w"}

Answer = Callable[[Inputs], Tensor]
"""What the library that runs a file makes of inputs: float32 [n, C, H, W]."""


@dataclass(frozen=True)
class Exported:
    """A file, and the proof that it makes the generator's images."""

    path: Path
    sha256: str
    runner: str
    """The library that ran it, with its version."""
    images: int
    """How many images were compared."""
    difference: float
    """The largest difference of a value, as a share of the range of pixels."""
    inputs: tuple[str, ...]
    """The inputs in words, such as `z float32 [n, 64]`."""

    @property
    def proof(self) -> str:
        """The figure in a sentence."""
        return (
            f"{self.runner} and gan-train differ by at most {self.difference:.2g} of the range of "
            f"pixels on {self.images:,} images (allowed: {BOUND:.4f})"
        )


def export(
    generator: Generator, form: Format, out: Path, images: int, about: Mapping[str, Any]
) -> list[Exported]:
    """Write the generator to `out`, which ends as `ENDINGS` says; returns what was written.

    A translation becomes two files, `NAME-to-A` and `NAME-to-B`. Each file is compared on `images`
    inputs, in batches of different sizes. `about` says in the file's metadata where the generator
    comes from. Raises UserError for a name with another ending, where the packages for ONNX are
    missing, and, without writing the file, where it differs by more than `BOUND`.
    """
    if out.suffix.lower() != ENDINGS[form]:
        raise UserError(f"--out {out}: {form} files end in {ENDINGS[form]}")
    if images < 1:
        raise UserError(f"--images {images}: allowed: 1 or more")
    missing = [name for name in _ONNX if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: install them with gan-train[onnx], or use "
            "--format torch"
        )
    found = []
    for program in programs(generator):
        path = out if program.to is None else out.with_stem(f"{out.stem}-to-{program.to}")
        found.append(_export(program, form, path, images, about))
    return found


def _export(
    program: Program, form: Format, path: Path, images: int, about: Mapping[str, Any]
) -> Exported:
    inputs, generator = program.inputs(0, 2), program.generator
    described = dict(about) | {
        "gan_train": library(),
        "family": generator.family,
        "task": generator.task,
        "classes": list(generator.shape.classes) if generator.conditional else [],
        "output": "image float32 in [-1, 1]; byte = min(255, floor(127.5 image + 128))",
        "noise": "stored maps, the same for all images, where the family has noise",
    }
    described |= {} if program.to is None else {"to": program.to}
    with aside(path) as file:
        at = Path(file.name)
        if form == "onnx":
            file.write(_onnx(program.traced(), inputs, json.dumps(described)))
        else:
            files = {ABOUT: json.dumps(described)}
            torch.export.save(program.traced(), file, extra_files=files)
        file.flush()
        answer, runner = _run_onnx(at) if form == "onnx" else _run_torch(at)
        difference = largest_difference(program, answer, images)
        if not difference <= BOUND:
            raise UserError(
                f"{path} was not written: its images differ from gan-train's by {difference:.2g} "
                f"of the range of pixels, and {BOUND:.4f} is allowed; another --format may do"
            )
        digest = sha256_of(at)
    said = tuple(f"{k} {str(x.dtype)[6:]} {_shape(x)}" for k, x in inputs.items())
    return Exported(path, digest, runner, images, difference, said)


def _shape(x: Tensor) -> str:
    free = _SIDES if x.ndim == 4 else {0: "n"}
    return f"[{', '.join(free.get(i, str(side)) for i, side in enumerate(x.shape))}]"


def largest_difference(program: Program, answer: Answer, images: int) -> float:
    """The largest difference between a file's answers and those of the generator, as a share of the
    range of pixels. The first image is alone in its batch, so that a file for one size of batch
    would fail. Not a number, if an answer holds such values."""
    at_once = Painter(program.generator, Look()).at_once
    worst = torch.zeros([])
    with progress_bar("comparing", "img", images) as bar:
        for first in [0, *range(1, images, at_once)]:
            count = 1 if first == 0 else min(at_once, images - first)
            inputs = program.inputs(first, count)
            theirs, ours = answer(inputs), program.answer(inputs)
            if theirs.shape != ours.shape:
                return float("nan")
            worst = torch.maximum(worst, (theirs - ours).abs().max())  # keeps what is no number
            bar.update(count)
    return float(worst) / 2


# ---- ONNX --------------------------------------------------------------------------------------


def _onnx(traced: ExportedProgram, inputs: Inputs, about: str) -> bytes:
    """The program as the bytes of an ONNX model."""
    with _quiet():
        made = torch.onnx.export(
            traced, dynamo=True, verbose=False, input_names=list(inputs), output_names=[OUTPUT]
        )
    assert made is not None
    model = made.model_proto
    model.metadata_props.add(key=ABOUT, value=about)
    del model.graph.value_info[:]  # it is inferred again, and would keep the old names of sides
    names: dict[str, str] = {}
    for value in model.graph.input:
        for place, side in enumerate(value.type.tensor_type.shape.dim):
            if side.dim_param:
                names[side.dim_param] = _SIDES[place]
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim:
            for old, new in names.items():
                side.dim_param = side.dim_param.replace(old, new)
    return model.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's remarks on its own code and on packages that no generator needs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _run_onnx(path: Path) -> tuple[Answer, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(inputs: Inputs) -> Tensor:
        given = {name: x.numpy() for name, x in inputs.items()}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return answer, f"onnxruntime {onnxruntime.__version__}"


# ---- a program of PyTorch ----------------------------------------------------------------------


def _run_torch(path: Path) -> tuple[Answer, str]:
    """Run a file that was just written here: PyTorch's reader may execute what a foreign file
    holds (note 39)."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def answer(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return module(**inputs)

    return answer, f"torch {torch.__version__.partition('+')[0]}"
