"""Says how MLflow calls a served model: which file serves it, what goes in, what comes out.

There are two kinds of models, by the family's task: one takes latents, the other picture files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.adversary import Task
from gan_train.inference import Generator

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

Request = dict[str, Any]


@dataclass(frozen=True)
class Interface:
    """How models of one kind are called. MLflow executes `file` when it loads a model. `signature`
    lists the fields of that file's `Request` as columns, because the UI shows columns."""

    file: Path
    signature: Callable[[Generator], ModelSignature]
    example: Callable[[Generator], Request]


def interface_of(generator: Generator) -> Interface:
    """The interface for the generator's task."""
    return _INTERFACES[generator.task]


def _latents_signature(generator: Generator) -> ModelSignature:
    """Latents, a class and a truncation go in, images come out."""
    import numpy as np
    from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec

    inputs = [
        ColSpec(Array(DataType.double), "z", required=False),  # or `seed`
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(DataType.string, "label", required=False),  # a class's name or position
        ColSpec(DataType.double, "truncation", required=False),
    ]
    side, channels = generator.shape.resolution, generator.shape.channels
    images = TensorSpec(np.dtype("uint8"), (-1, side, side, channels), "images")
    return _signature(inputs, Schema([images]))


def _latents_example(generator: Generator) -> Request:
    """One latent, and the first class if there are classes."""
    request: Request = {"z": generator.latents([0])[0].tolist(), "truncation": 1.0}
    if generator.conditional:
        request["label"] = generator.shape.classes[0]
    return request


def _pictures_signature(generator: Generator) -> ModelSignature:
    """A picture file in base64 goes in, with a domain where there are two; a PNG file in base64
    comes out."""
    from mlflow.types.schema import ColSpec, DataType, Schema

    inputs = [
        ColSpec(DataType.string, "image", required=True),
        ColSpec(DataType.string, "to", required=False),
    ]
    return _signature(inputs, Schema([ColSpec(DataType.string)]))


def _pictures_example(generator: Generator) -> Request:
    """A small ramp from black to white."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(file, "PNG")
    request = {"image": base64.b64encode(file.getvalue()).decode()}
    return request | ({"to": "B"} if generator.task == "translate" else {})


def _signature(inputs: list[Any], outputs: Any) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

    found = ModelSignature(inputs=Schema(inputs), outputs=outputs)
    found._is_signature_from_type_hint = True
    return found


_HERE = Path(__file__)
_LATENTS = Interface(_HERE.with_name("served_model.py"), _latents_signature, _latents_example)
_PICTURES = Interface(
    _HERE.with_name("served_picture_model.py"), _pictures_signature, _pictures_example
)
_INTERFACES: dict[Task, Interface] = {
    "generate": _LATENTS,
    "upscale": _PICTURES,
    "translate": _PICTURES,
}
