"""A model that upscales or translates pictures, as MLflow serves it.

MLflow copies this file into every served model and executes it on loading ("models from code"),
so that nothing has to be pickled. `set_model` in the last line tells MLflow which object to serve.
This file may import only `gan_train` and the packages of `logged_model.requirements()`.

A request is bounded in what it makes the model do. MLflow itself reads and parses any body whole.
"""

import base64
import threading
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gan_train.data.images import BadImage, open_picture
from gan_train.errors import UserError
from gan_train.images.origin import encoded
from gan_train.images.pixels import to_picture
from gan_train.inference import Generator, conversion

MOST_PICTURES = 16
PICTURE_PIXELS = 1 << 20
"""The largest picture. Translation takes about 1.2 KiB of memory for each pixel."""
MOST_PIXELS = 1 << 21
"""The most pixels of all pictures of a request, as they come."""
PICTURE_BYTES = 8 << 20


class Request(BaseModel):
    """One picture: any file that Pillow reads, in base64. `to` is for models that translate."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(max_length=4 * PICTURE_BYTES // 3 + 4)
    to: str | None = Field(None, max_length=8)  # MLflow knows no Literal


class ServedConverter(PythonModel):
    """`gan_train.inference.Generator.converted` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights (safetensors) that were logged with the model."""
        self.generator = Generator.load(Path(context.artifacts["generator"]))
        self._one_at_a_time = threading.Lock()  # MLflow calls from several threads

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Request],
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """A PNG in base64 for every request.

        Raises MlflowException (HTTP status 400 when served) for too many pictures, for a file that
        is no picture or too large, and for a domain given to a model that has none.
        """
        try:
            if not 1 <= len(model_input) <= MOST_PICTURES:
                raise UserError(f"{len(model_input)} pictures; allowed: 1 to {MOST_PICTURES}")
            with self._one_at_a_time:
                left, made = MOST_PIXELS, []
                for request in model_input:
                    picture = self._picture(request)
                    left -= picture.shape[1] * picture.shape[2]
                    if left < 0:
                        raise UserError(f"more than {MOST_PIXELS} pixels: send fewer pictures")
                    made.append(self._converted(picture, request))
                return made
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _picture(self, request: Request) -> Tensor:
        """The picture uint8 [C, H, W]"""
        try:
            data = base64.b64decode(request.image, validate=True)
            channels = self.generator.shape.channels
            return open_picture(data, channels, max_pixels=PICTURE_PIXELS)
        except (ValueError, BadImage) as error:
            raise UserError(f"image: no picture file in base64: {error}") from error

    def _converted(self, picture: Tensor, request: Request) -> str:
        made = self.generator.converted(picture, request.to)  # uint8 [C, H', W']
        origin = conversion(self.generator, base64.b64decode(request.image), request.to)
        return base64.b64encode(encoded(to_picture(made), origin)).decode()


set_model(ServedConverter())
