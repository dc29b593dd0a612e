"""The names that a pickle of PyTorch modules may contain, and the inert values built for them.

`read_modules` reads files such as StyleGAN2-ADA's: a plain pickle of a dictionary of modules. Each
module is stored as its class's name, source code and attributes; the source code is not used.
Tensors are built from the bytes in the file; a tensor that reaches beyond its bytes is refused.

A storage within such a file is itself a small file, in the format of `torch.save` before 2020: four
pickles (magic number, protocol, description of the machine, a reference to the storage), one with
the storage's key, then the number of elements and the elements.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_train.published.pickle_stream import Name, StreamError, Vocabulary, read_pickle

MAX_FILE_BYTES = 4 << 30
MAX_VIEWS = 2  # how many times the file's size the tensors may have: views may share storages
MAX_DIMENSIONS = 8
MAX_MODULES = 10_000
MAX_MODULE_DEPTH = 16
MAX_TENSORS = 100_000
MAX_ATTRIBUTE = 200  # characters of an attribute's name

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
_SCALARS = {"f2": "<e", "f4": "<f", "f8": "<d", "i4": "<i", "i8": "<q", "b1": "<?"}


@dataclass(frozen=True, eq=False, repr=False)
class PublishedModule:
    """A module as it is stored: the name of its class, and its attributes by name."""

    class_name: str
    state: dict[Any, Any]

    def named_modules(self) -> Iterator[tuple[str, PublishedModule]]:
        """This module (named "") and all modules below it, with the dotted names that torch gives.

        Raises StreamError where the tree is deeper or larger than the limits of this file.
        """
        waiting = [("", self, 0)]
        count = 0
        while waiting:
            name, module, depth = waiting.pop()
            count += 1
            if count + len(waiting) > MAX_MODULES:
                raise StreamError(f"there are more than {MAX_MODULES} modules")
            yield name, module
            if depth == MAX_MODULE_DEPTH:
                raise StreamError(f"modules are nested deeper than {MAX_MODULE_DEPTH}")
            children = module.table("_modules")
            count += sum(child is None for child in children.values())
            for key, child in reversed(children.items()):
                if isinstance(child, PublishedModule):
                    waiting.append((f"{name}.{key}" if name else key, child, depth + 1))
                elif child is not None:
                    raise StreamError(f"the submodule {key} is a {type(child).__name__}")

    def table(self, attribute: str) -> dict[str, Any]:
        """The attribute, which must be one of torch's dictionaries of parameters, buffers or
        submodules."""
        found = self.state.get(attribute)
        if not isinstance(found, dict) or not all(map(_is_attribute, found)):
            raise StreamError(f"a {self.class_name} in the file has no {attribute}")
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name, as `torch.nn.Module.state_dict`."""
        tensors: dict[str, Tensor] = {}
        count = 0
        for prefix, module in self.named_modules():
            transient = module.state.get("_non_persistent_buffers_set", set())
            if not isinstance(transient, set):
                raise StreamError(f"a {module.class_name} in the file is not what torch stores")
            entries = module.table("_parameters") | module.table("_buffers")
            count += len(entries)
            if count > MAX_TENSORS:
                raise StreamError(f"there are more than {MAX_TENSORS} tensors")
            for key, value in entries.items():
                if value is None or key in transient:
                    continue
                if not isinstance(value, Tensor):
                    raise StreamError(f"{prefix}.{key} is no tensor")
                tensors[f"{prefix}.{key}" if prefix else key] = value
        return tensors


def read_modules(path: Path) -> Any:
    """The value of a pickle file: plain data, tensors, and a PublishedModule for every module.

    Raises StreamError (a UserError) for a damaged file, and for content of any other kind.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise StreamError(f"it has {size} bytes, more than the {MAX_FILE_BYTES} that are read")
    if size == 0:
        raise StreamError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        value = read_pickle(data, _Builders(size).vocabulary())
        if data.tell() != size:
            raise StreamError(f"{size - data.tell()} bytes follow after the end of the pickle")
    return value


@dataclass(frozen=True, eq=False)
class _Storage:
    elements: Tensor  # [n]


@dataclass(eq=False)
class _NumpyType:
    """A type of numpy scalars. The stream gives its byte order afterwards, as a state."""

    code: str
    little_endian: bool = False

    def take_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or type(state[1]) is not str:
            raise StreamError("a numpy type is not stored as numpy stores it")
        if state[1] not in ("<", "|"):
            raise StreamError("a numpy number is not stored in little-endian order")
        self.little_endian = True


class _Builders:
    """Builds the values of one file, and limits the total size of its storages and of its tensors:
    a stream of a few bytes could ask for the same megabyte again and again."""

    def __init__(self, file_bytes: int) -> None:
        self.file_bytes, self.storage_bytes, self.tensor_bytes = file_bytes, 0, 0

    def vocabulary(self) -> Vocabulary:
        return {
            Name("collections", "OrderedDict"): _empty_dictionary,
            Name("dnnlib.util", "EasyDict"): _empty_dictionary,
            Name("builtins", "set"): _set,
            Name("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
            Name("torch.storage", "_load_from_bytes"): self.storage,
            Name("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            Name("torch._utils", "_rebuild_parameter"): _parameter,
            Name("numpy", "dtype"): _numpy_type,
            Name("numpy.core.multiarray", "scalar"): _numpy_scalar,
            Name("numpy._core.multiarray", "scalar"): _numpy_scalar,
        }

    def storage(self, arguments: tuple[Any, ...]) -> _Storage:
        """`_load_from_bytes(bytes)`: the elements of a storage that was saved on its own."""
        if len(arguments) != 1 or type(arguments[0]) is not bytes:
            raise StreamError("a storage is not stored as torch stores it")
        self.storage_bytes += len(arguments[0])
        if self.storage_bytes > self.file_bytes:
            raise StreamError("the storages have more bytes together than the file")
        return _storage(arguments[0])

    def tensor(self, arguments: tuple[Any, ...]) -> Tensor:
        """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
        if len(arguments) != 6:
            raise StreamError("a tensor is not stored as torch stores it")
        storage, offset, size, stride, _, hooks = arguments
        places = [offset, *size, *stride] if _tuples(size, stride) else [None]
        if (
            not isinstance(storage, _Storage)
            or not _no_hooks(hooks)
            or not all(type(n) is int and 0 <= n <= MAX_FILE_BYTES for n in places)
            or not len(size) == len(stride) <= MAX_DIMENSIONS
        ):
            raise StreamError("a tensor is not stored as torch stores it")
        elements, count = storage.elements, math.prod(size)
        if not 0 < count <= len(elements):
            raise StreamError(
                f"a tensor of shape {list(size)} has {count} elements, its storage {len(elements)}"
            )
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(elements):
            raise StreamError(
                f"a tensor of shape {list(size)} reaches element {last} of a storage that has "
                f"{len(elements)}"
            )
        self.tensor_bytes += count * elements.element_size()
        if self.tensor_bytes > MAX_VIEWS * self.file_bytes:
            raise StreamError(f"the tensors are more than {MAX_VIEWS} times the file together")
        return elements.as_strided(size, stride, offset).contiguous()


def _is_attribute(key: Any) -> bool:
    return type(key) is str and 0 < len(key) <= MAX_ATTRIBUTE


def _tuples(*values: Any) -> bool:
    return all(type(value) is tuple for value in values)


def _no_hooks(value: Any) -> bool:
    """Whether `value` holds no gradient hooks, which are functions: None or an empty dictionary."""
    return value is None or (type(value) is dict and not value)


def _empty_dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty dictionary; the stream gives its items afterwards."""
    if arguments:
        raise StreamError("a dictionary is not stored as Python stores it")
    return {}


def _set(arguments: tuple[Any, ...]) -> set[str]:
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise StreamError("a set is not stored as Python stores it")
    if not all(type(member) is str for member in arguments[0]):
        raise StreamError("a set has members that are no texts")
    return set(arguments[0])


def _module(arguments: tuple[Any, ...]) -> PublishedModule:
    meta = arguments[0] if len(arguments) == 1 else None
    if (
        not isinstance(meta, dict)
        or meta.get("type") != "class"
        or not isinstance(meta.get("class_name"), str)
        or not isinstance(meta.get("state"), dict)
    ):
        raise StreamError("a module is not stored as a class's name and state")
    return PublishedModule(meta["class_name"], meta["state"])


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """`_rebuild_parameter(data, requires_grad, hooks)`."""
    if len(arguments) != 3 or not isinstance(arguments[0], Tensor):
        raise StreamError("a parameter is not stored as torch stores it")
    if not _no_hooks(arguments[2]):
        raise StreamError("a parameter has gradient hooks, which are functions")
    return arguments[0]


def _numpy_type(arguments: tuple[Any, ...]) -> _NumpyType:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or code not in _SCALARS:
        raise StreamError("a numpy type is none of " + ", ".join(_SCALARS))
    return _NumpyType(code)


def _numpy_scalar(arguments: tuple[Any, ...]) -> float | int | bool:
    kind, raw = arguments if len(arguments) == 2 else (None, None)
    if not isinstance(kind, _NumpyType) or not kind.little_endian or type(raw) is not bytes:
        raise StreamError("a numpy number is not stored as numpy stores it")
    layout = _SCALARS[kind.code]
    if len(raw) != struct.calcsize(layout):
        raise StreamError("a numpy number has the wrong number of bytes")
    value: float | int | bool = struct.unpack(layout, raw)[0]
    return value


def _storage(data: bytes) -> _Storage:
    stream = io.BytesIO(data)
    if read_pickle(stream, {}) != _MAGIC or read_pickle(stream, {}) != _PROTOCOL:
        raise StreamError("a storage does not begin as a file of torch.save does")
    machine = read_pickle(stream, {})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise StreamError("a storage was not written by a little-endian machine")
    types: Vocabulary = {Name("torch", name): None for name in _STORAGES}
    reference = read_pickle(stream, types, persistent=lambda values: values)
    if type(reference) is not tuple or len(reference) != 6:
        raise StreamError("a storage is not stored as torch stores it")
    tag, kind, key, _, count, view = reference
    if (
        (tag, view) != ("storage", None)
        or not isinstance(kind, Name)
        or type(key) is not str
        or type(count) is not int
        or not 0 < count <= len(data)
        or read_pickle(stream, {}) != [key]
    ):
        raise StreamError("a storage is not stored as torch stores it")
    dtype = _STORAGES[kind.name]
    begin = stream.tell() + 8
    there = len(data) - begin
    if data[begin - 8 : begin] != struct.pack("<q", count) or there != count * dtype.itemsize:
        raise StreamError(f"a storage says {count} elements of {dtype} and has {there} bytes")
    return _Storage(torch.frombuffer(bytearray(memoryview(data)[begin:]), dtype=dtype))
