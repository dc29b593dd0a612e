"""A model that upscales or translates pictures, as MLflow serves it.

MLflow copies this file into every served model and executes it on loading ("models from code"),
so that nothing has to be pickled. `set_model` in the last line tells MLflow which object to serve.
This file may import only `gan_train` and the packages of `logged_model.requirements()`.
"""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict

from gan_train.data.images import BadImage, open_picture
from gan_train.errors import UserError
from gan_train.images.pixels import to_picture
from gan_train.inference import Generator


class Request(BaseModel):
    """One picture: any file that Pillow reads, in base64. `to` is for models that translate."""

    model_config = ConfigDict(extra="forbid")

    image: str
    to: str | None = None  # MLflow knows no Literal


class ServedConverter(PythonModel):
    """`gan_train.inference.Generator.converted` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights (safetensors) that were logged with the model."""
        self.generator = Generator.load(Path(context.artifacts["generator"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Request],
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """A PNG in base64 for every request.

        Raises MlflowException (HTTP status 400 when served) for a file that is no picture, and
        for a domain given to a model that has none.
        """
        try:
            return [self._converted(request) for request in model_input]
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _converted(self, request: Request) -> str:
        try:
            data = base64.b64decode(request.image, validate=True)
            picture = open_picture(data, self.generator.shape.channels)
        except (binascii.Error, BadImage) as error:
            raise UserError(f"image: no picture file in base64: {error}") from error
        made = self.generator.converted(picture, request.to)  # uint8 [C, H, W]
        file = io.BytesIO()
        to_picture(made).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()


set_model(ServedConverter())
