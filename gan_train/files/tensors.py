"""Reads tensors from files of others: safetensors, which hold numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gan_train.errors import UserError


def load_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises UserError for any other file, a pickle for instance, of which nothing is executed.
    """
    with _told(path):
        return load_file(path, device=device)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file by name. No tensor is read; the format makes
    sure that the file is as long as they say. Raises UserError for any other file."""
    with _told(path), safe_open(path, "pt") as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def load_some(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """These tensors of a safetensors file, by name; the others are not read. Raises UserError for
    any other file, and where a name is not in it."""
    with _told(path), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names}


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn errors of the format into a UserError that names the file."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}): it is damaged, or of another kind; "
            "fetch it again"
        ) from error
