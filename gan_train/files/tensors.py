"""Reads tensors from files of others: safetensors, which hold numbers alone."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gan_train.errors import UserError


def load_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises UserError for any other file, a pickle for instance, of which nothing is executed.
    """
    try:
        return load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}): it is damaged, or of another kind; "
            "fetch it again"
        ) from error
