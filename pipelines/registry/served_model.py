"""The model as MLflow serves it: latents, classes and truncation in, images out.

MLflow copies this file into every served model and executes it on loading ("models from code"),
so that nothing has to be pickled. `set_model` in the last line tells MLflow which object to serve.
This file may import only `gan_train` and the packages of `logged_model.requirements()`.

A request is bounded in what it makes the model do. MLflow itself reads and parses any body whole.
"""

import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter
from gan_train.sampling.seeds import LARGEST_SEED

MOST_IMAGES = 256
MOST_PIXELS = 1 << 22
"""The most images and pixels of one request: a pixel takes about 120 bytes on its way into JSON."""


def _whole(value: Any) -> Any:
    """Turn 2.0 into 2: a table with gaps holds its integers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> Any:
    """Turn 7 into "7"."""
    return str(_whole(value)) if isinstance(value, int | float) else value


class Request(BaseModel):
    """One image. Its latents are `z`, or are drawn from `seed`; its class is a name or a position.

    MLflow checks every request against these types, and strictly. The validators accept what
    JSON and tables give: an int may come as a float, and a class's position as a number.
    """

    model_config = ConfigDict(extra="forbid")

    z: list[float] | None = None
    seed: Annotated[int | None, BeforeValidator(_whole)] = Field(None, ge=0, le=LARGEST_SEED)
    label: Annotated[str | None, BeforeValidator(_text)] = Field(None, max_length=500)
    truncation: float | None = Field(None, ge=-2, le=2)


class ServedGenerator(PythonModel):
    """`gan_train.inference.Generator` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights (safetensors) that were logged with the model."""
        self.generator = Generator.load(Path(context.artifacts["generator"]))
        self.most = max(1, min(MOST_IMAGES, MOST_PIXELS // self.generator.shape.resolution**2))
        self._one_at_a_time = threading.Lock()  # MLflow calls from several threads

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Request],
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Images uint8 [N, H, W, C], one for each request.

        Raises MlflowException (HTTP status 400 when served) for too many images, and for latents,
        classes or truncations that the generator does not have.
        """
        try:
            if not 1 <= len(model_input) <= self.most:
                raise UserError(f"{len(model_input)} images; allowed: 1 to {self.most} at a time")
            with self._one_at_a_time:
                return self._images(model_input)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _images(self, requests: list[Request]) -> np.ndarray:
        z = torch.stack([self._latent(request) for request in requests])  # [N, z_dim]
        labels = torch.tensor([self._label(request) for request in requests])
        truncations = [1.0 if r.truncation is None else r.truncation for r in requests]
        out = torch.empty(len(z), *self._image_size(), dtype=torch.uint8)  # [N, C, H, W]
        at_once = Painter(self.generator, Look()).at_once
        # the generator takes one truncation at a time
        for truncation in sorted(set(truncations)):
            alike = [i for i, other in enumerate(truncations) if other == truncation]
            for rows in (alike[i : i + at_once] for i in range(0, len(alike), at_once)):
                label = labels[rows] if self.generator.conditional else None
                out[rows] = self.generator.images(z[rows], label, truncation)
        return out.permute(0, 2, 3, 1).contiguous().numpy()

    def _image_size(self) -> tuple[int, int, int]:
        shape = self.generator.shape
        return shape.channels, shape.resolution, shape.resolution

    def _latent(self, request: Request) -> torch.Tensor:
        """The request's latents, float32 [z_dim]"""
        if request.z is None and request.seed is not None:
            return self.generator.latents([request.seed])[0]
        if request.z is None or request.seed is not None:
            raise UserError("give either `z` or `seed` for each image")
        if len(request.z) != self.generator.z_dim:
            raise UserError(f"z has {len(request.z)} numbers; expected {self.generator.z_dim}")
        z = torch.tensor(request.z, dtype=torch.float32)
        if not torch.isfinite(z).all():
            raise UserError("z holds numbers that are infinite or not a number")
        return z

    def _label(self, request: Request) -> int:
        """A class's position; names are looked up first, so that the class "7" can be asked for."""
        if not self.generator.conditional:
            return 0
        classes = self.generator.shape.classes
        if request.label is None:
            raise UserError(f"name a class (`label`), one of: {', '.join(classes)}")
        if request.label in classes:
            return classes.index(request.label)
        if request.label.isdecimal() and int(request.label) < len(classes):
            return int(request.label)
        raise UserError(
            f"label {request.label!r} is no class; allowed: {', '.join(classes)}, or a position "
            f"from 0 to {len(classes) - 1}"
        )


set_model(ServedGenerator())
