"""The model as MLflow serves it: latents, classes and truncation in, images out.

MLflow copies this file into every served model and executes it on loading ("models from code"),
so that nothing has to be pickled. `set_model` in the last line tells MLflow which object to serve.
This file may import only `gan_train` and the packages of `logged_model.requirements()`.
"""

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
    seed: Annotated[int | None, BeforeValidator(_whole)] = None
    label: Annotated[str | None, BeforeValidator(_text)] = None
    truncation: float | None = Field(None, ge=-2, le=2)


class ServedGenerator(PythonModel):
    """`gan_train.inference.Generator` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights (safetensors) that were logged with the model."""
        self.generator = Generator.load(Path(context.artifacts["generator"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Request],
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Images uint8 [N, H, W, C], one for each request.

        Raises MlflowException (HTTP status 400 when served) for latents, classes or truncations
        that the generator does not have.
        """
        try:
            z = torch.stack([self._latent(request) for request in model_input])  # [N, z_dim]
            labels = [self._label(request) for request in model_input]
            truncations = [1.0 if r.truncation is None else r.truncation for r in model_input]
            out = torch.empty(len(z), *self._image_size(), dtype=torch.uint8)  # [N, C, H, W]
            # the generator takes one truncation at a time
            for truncation in sorted(set(truncations)):
                rows = [i for i, other in enumerate(truncations) if other == truncation]
                label = (
                    torch.tensor([labels[i] for i in rows]) if self.generator.conditional else None
                )
                out[rows] = self.generator.images(z[rows], label, truncation)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
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
        return torch.tensor(request.z, dtype=torch.float32)

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
