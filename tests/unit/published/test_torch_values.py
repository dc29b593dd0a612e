"""Tensors, numbers and modules in a pickle: the same bits as torch reads, or a refusal."""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gan_train.errors import UserError
from gan_train.published import torch_values
from gan_train.published.torch_values import PublishedModule, read_modules
from tests.unit.published.streams import EasyDict, Stored, dumped, module

PROTOCOLS = (3, 4, 5)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    def from_file(data: bytes) -> Any:
        path = tmp_path / "file.pkl"
        path.write_bytes(data)
        return read_modules(path)

    return from_file


# ---- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_come_back_bit_by_bit(read: Callable[[bytes], Any], protocol: int) -> None:
    base = torch.randn(6, 8, dtype=torch.float64)
    tensors = {
        "double": base,
        "float": base.float(),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "int64": torch.tensor([2**62, -1]),
        "int32": torch.arange(-3, 3, dtype=torch.int32),
        "int16": torch.arange(-3, 3, dtype=torch.int16),
        "int8": torch.arange(-3, 3, dtype=torch.int8),
        "uint8": torch.arange(250, 256, dtype=torch.uint8),
        "scalar": torch.tensor(0.1),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "transposed": base.T,
        "slice": base[1:4, 3:7:2],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    }
    found = read(dumped(tensors, protocol))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].is_contiguous() and not found[name].requires_grad, name
        same = found[name].view(torch.uint8) if tensor.ndim else found[name]
        wanted = tensor.detach().contiguous()
        assert torch.equal(same, wanted.view(torch.uint8) if tensor.ndim else wanted), name


def test_tensors_that_share_a_storage(read: Callable[[bytes], Any]) -> None:
    """One storage object in the stream, two tensors that view it."""
    base = torch.arange(12.0)
    storage = base._typed_storage()
    rebuilt = torch._utils._rebuild_tensor_v2

    class View:
        def __init__(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
            self.how = (storage, offset, size, stride, False, OrderedDict())

        def __reduce__(self) -> tuple[Any, ...]:
            return rebuilt, self.how

    data = dumped([View(0, (3, 4), (4, 1)), View(2, (2, 3), (1, 4)), View(11, (), ())])
    assert data.count(b"FloatStorage") == 1
    rows, columns, last = read(data)
    assert torch.equal(rows, base.view(3, 4))
    assert torch.equal(columns, base.as_strided((2, 3), (1, 4), 2))
    assert torch.equal(last, torch.tensor(11.0))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_numbers_become_plain_ones(read: Callable[[bytes], Any], protocol: int) -> None:
    numbers = [np.float64(np.sqrt(2)), np.float32(0.1), np.int64(-5), np.int32(7), np.bool_(True)]
    data = dumped(numbers, protocol)
    for stream in (data, data.replace(b"numpy._core", b"numpy.core") if protocol == 3 else data):
        found = read(stream)
        assert found == [np.sqrt(2), float(np.float32(0.1)), -5, 7, True]
        assert [type(value) for value in found] == [float, float, int, int, bool]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_modules_are_names_and_attributes(read: Callable[[bytes], Any], protocol: int) -> None:
    tensors = {"a.weight": torch.randn(2, 3), "a.b.w_avg": torch.randn(4), "c.bias": torch.ones(1)}
    stored = module("Generator", tensors, resolution=16)
    stored.state["_modules"]["a"].state["_buffers"]["scratch"] = torch.zeros(9)
    stored.state["_modules"]["a"].state["_non_persistent_buffers_set"] = {"scratch"}
    stored.state["_modules"]["nothing"] = None

    found = read(dumped({"G": stored, "options": EasyDict(x=1)}, protocol))

    assert found["options"] == {"x": 1}
    g = found["G"]
    assert isinstance(g, PublishedModule)
    assert (g.class_name, g.state["resolution"]) == ("Generator", 16)
    assert [name for name, _ in g.named_modules()] == ["", "a", "a.b", "c"]
    state = g.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert "torch_utils" not in sys.modules and "dnnlib" not in sys.modules


# ---- what is refused ---------------------------------------------------------------------------


def broken(tensor: torch.Tensor, place: int, value: Any) -> bytes:
    """The stream of a tensor, one of whose rebuilding arguments is another."""

    class Broken:
        def __reduce__(self) -> tuple[Any, ...]:
            function, arguments = tensor.__reduce_ex__(4)[:2]
            return function, (*arguments[:place], value, *arguments[place + 1 :])

    return dumped(Broken())


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (0, None, "not stored as torch stores it"),
        (1, 7, "reaches element 12 of a storage that has 12"),
        (1, -1, "not stored as torch stores it"),
        (1, True, "not stored as torch stores it"),
        (1, 2**100, "not stored as torch stores it"),
        (2, (3, 5), "shape .3, 5. has 15 elements, its storage 12"),
        (2, (2**20, 2**20), "elements, its storage 12"),
        (2, (0, 4), "has 0 elements"),
        (2, (3, -4), "not stored as torch stores it"),
        (2, (3, 4, 1), "not stored as torch stores it"),
        (2, [3, 4], "not stored as torch stores it"),
        (2, (3, "4"), "not stored as torch stores it"),
        (3, (5, 1), "reaches element 13 of a storage that has 12"),
        (3, (4, 2**31), "reaches element"),
        (3, (-4, 1), "not stored as torch stores it"),
        (3, (2**70, 1), "not stored as torch stores it"),
        (5, {"hook": 1}, "not stored as torch stores it"),
        (5, [1], "not stored as torch stores it"),
        (5, torch.ones(3), "not stored as torch stores it"),
    ],
)
def test_tensors_that_lie_are_refused(
    read: Callable[[bytes], Any], place: int, value: Any, what: str
) -> None:
    tensor = torch.arange(12.0).view(3, 4)
    if place == 1 and value == 7:
        tensor = torch.arange(12.0)[6:].view(2, 3)
    assert torch.equal(read(broken(tensor, 4, False)), tensor)
    with pytest.raises(UserError, match=what):
        read(broken(tensor, place, value))


def test_a_view_that_repeats_its_storage_is_refused(read: Callable[[bytes], Any]) -> None:
    """One number, said to be a terabyte."""
    with pytest.raises(UserError, match="has 268435456 elements, its storage 1"):
        read(dumped(torch.ones(1).expand(2**14, 2**14)))


def test_the_bytes_of_all_tensors_are_bounded(
    read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, rebuilt = torch.ones(1000)._typed_storage(), torch._utils._rebuild_tensor_v2

    class View:
        def __reduce__(self) -> tuple[Any, ...]:
            return rebuilt, (storage, 0, (1000,), (1,), False, OrderedDict())

    data = dumped([View(), View()])
    assert len(read(data)) == 2
    with pytest.raises(UserError, match="more than 2 times the file"):
        read(dumped([View(), View(), View(), View()]))
    monkeypatch.setattr(torch_values, "MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match="more than the 100 that are read"):
        read(data)


class FromBytes:
    """A storage made of these bytes, whatever they are."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.data,)


def storage_bytes(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(tensor._typed_storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_the_same_bytes_are_no_second_storage(read: Callable[[bytes], Any]) -> None:
    """Bytes that the stream remembers cost it 5 bytes more, and would cost us all of them."""
    whole = storage_bytes(torch.ones(1000))
    assert len(read(dumped([FromBytes(whole)]))) == 1
    with pytest.raises(UserError, match="storages have more bytes together than the file"):
        read(dumped([FromBytes(whole), FromBytes(whole)]))


def test_storages_that_lie_are_refused(read: Callable[[bytes], Any]) -> None:
    whole = storage_bytes(torch.arange(3.0))
    assert torch.equal(read(dumped(FromBytes(whole))).elements, torch.arange(3.0))
    count = struct.pack("<q", 3)
    at = whole.rindex(count)
    zipped = io.BytesIO()
    torch.save(torch.ones(3)._typed_storage(), zipped)
    little = whole.index(b"little_endian") + len(b"little_endian")
    mark = whole.index(b"\x88", little)
    cases = {
        "has 11 bytes": whole[:-1],
        "has 13 bytes": whole + b"\0",
        "says 3 elements": whole[:at] + struct.pack("<q", 2) + whole[at + 8 :],
        "not stored as torch": whole.replace(b"cpu", b"cpu").replace(b"storageq", b"storagXq"),
        "little-endian": whole[:mark] + b"\x89" + whole[mark + 1 :],
        r"names torch\.QInt8Storage": whole.replace(b"FloatStorage", b"QInt8Storage"),
        "does not begin": pickle.dumps(7, 2) + whole,
        "damaged or cut off": zipped.getvalue(),
    }
    for what, data in cases.items():
        assert data != whole
        with pytest.raises(UserError, match=what):
            read(dumped(FromBytes(data)))
    for end in (0, 1, 20, little, mark, at, at + 4):
        with pytest.raises(UserError):
            read(dumped(FromBytes(whole[:end])))
    with pytest.raises(UserError, match="not stored as torch"):
        read(dumped(FromBytes("text")))


def test_a_call_hidden_in_a_storage_is_refused(
    read: Callable[[bytes], Any], tmp_path: Path
) -> None:
    trace = tmp_path / "SPRUNG"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(trace), "w")

    magic = pickle.dumps(torch_values._MAGIC, 2)
    protocol = pickle.dumps(torch_values._PROTOCOL, 2)
    machine = pickle.dumps({"little_endian": True}, 2)
    bomb = pickle.dumps(Bomb(), 2)
    for data in (bomb, magic + bomb, magic + protocol + bomb, magic + protocol + machine + bomb):
        with pytest.raises(UserError, match=r"names io\.open"):
            read(dumped(FromBytes(data)))
    # in a file of networks nothing may stand for data elsewhere, as it may in a storage
    with pytest.raises(UserError, match="uses BINPERSID"):
        read(b"\x80\x04)Q.")
    # nor may a storage be made of the functions that the file around it may call
    inner = magic + protocol + machine + pickle.dumps(FromBytes(b""), 2, fix_imports=False)
    with pytest.raises(UserError, match=r"names (torch\.storage|_codecs)"):
        read(dumped(FromBytes(inner)))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.ones(3), r"names numpy\._core"),
        (np.complex128(1j), "a numpy type is none of"),
        (np.dtype(">f8").type(1.0), None),
        ({1.5}, "uses a float as a key"),
        (torch.Size([1]), r"names torch\.Size"),
        (torch.float32, r"names torch\.float32"),
        (torch.nn.Linear(1, 1), r"names torch\.nn\.modules\.linear\.Linear"),
        (torch.ones(1, dtype=torch.bool), r"names torch\.BoolStorage"),
        (torch.ones(1, dtype=torch.complex64), r"names torch\.ComplexFloatStorage"),
        (torch.ones(1).to_sparse(), r"names torch"),
    ],
)
def test_what_published_files_do_not_contain_is_refused(
    read: Callable[[bytes], Any], value: Any, what: str | None
) -> None:
    if what is None:
        assert read(dumped(value)) == 1.0
        return
    with pytest.raises(UserError, match=what):
        read(dumped(value))


def test_numpy_numbers_that_lie_are_refused(read: Callable[[bytes], Any]) -> None:
    data = dumped(np.float64(1.0), 3)
    assert read(data) == 1.0
    short = data.replace(b"C\x08", b"C\x07").replace(struct.pack("<d", 1.0), b"\0" * 7)
    swapped = data.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>")
    assert short != data != swapped
    for lie, what in ((short, "wrong number of bytes"), (swapped, "little-endian")):
        with pytest.raises(UserError, match=what):
            read(lie)


def test_modules_that_are_none_are_refused(read: Callable[[bytes], Any]) -> None:
    def with_state(**changes: Any) -> Any:
        stored = module("Generator", {"a.weight": torch.ones(1)})
        stored.state |= changes
        return read(dumped(stored)).state_dict

    wide = {f"m{i}": None for i in range(3)}
    assert with_state(_modules=wide)() == {}
    for changes, what in (
        ({"_modules": None}, "has no _modules"),
        ({"_modules": {1: None}}, "has no _modules"),
        ({"_modules": {"x" * 201: None}}, "has no _modules"),
        ({"_modules": {"a": 5}}, "the submodule a is a int"),
        ({"_parameters": {"w": "text"}}, r"w is no tensor"),
        ({"_buffers": []}, "has no _buffers"),
        ({"_non_persistent_buffers_set": ["w"]}, "not what torch stores"),
    ):
        with pytest.raises(UserError, match=what):
            with_state(**changes)()

    class Meta:
        def __init__(self, **meta: Any) -> None:
            self.meta = meta

        def __reduce__(self) -> tuple[Any, ...]:
            return Stored("x").__reduce__()[0], (self.meta,)

    for meta in (
        {},
        {"type": "function", "class_name": "G", "state": {}},
        {"type": "class", "class_name": 5, "state": {}},
        {"type": "class", "class_name": "G", "state": None},
    ):
        with pytest.raises(UserError, match="not stored as a class's name and state"):
            read(dumped(Meta(**meta)))


def test_too_many_modules_and_tensors_are_refused(
    read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf, tensor = module("Layer", {}), torch.ones(1)
    stored = module("Generator", {})
    stored.state["_modules"] |= {f"m{i}": leaf for i in range(50)}
    stored.state["_modules"] |= {f"none{i}": None for i in range(5)}
    stored.state["_buffers"] |= {f"b{i}": tensor for i in range(20)}
    found = read(dumped(stored))
    monkeypatch.setattr(torch_values, "MAX_MODULES", 56)
    monkeypatch.setattr(torch_values, "MAX_TENSORS", 20)
    assert len(found.state_dict()) == 20
    monkeypatch.setattr(torch_values, "MAX_TENSORS", 19)
    with pytest.raises(UserError, match="more than 19 tensors"):
        found.state_dict()
    monkeypatch.setattr(torch_values, "MAX_TENSORS", 20)
    monkeypatch.setattr(torch_values, "MAX_MODULES", 55)
    with pytest.raises(UserError, match="more than 55 modules"):
        found.state_dict()


def test_files_that_end_too_early_or_too_late_are_refused(read: Callable[[bytes], Any]) -> None:
    data = dumped({"G": module("Generator", {"weight": torch.randn(3, 3)})})
    for length in range(0, len(data), 7):
        with pytest.raises(UserError):
            read(data[:length])
    with pytest.raises(UserError, match="1 bytes follow after the end"):
        read(data + b"\0")
    with pytest.raises(UserError, match=re.escape("it is empty")):
        read(b"")


def test_flipped_bytes_are_read_as_data_or_refused(read: Callable[[bytes], Any]) -> None:
    """Damage anywhere: another value or a UserError, never another exception."""
    data = dumped({"G": module("Generator", {"a.weight": torch.randn(2, 2)}), "n": np.float64(1)})
    refused = 0
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]
        try:
            found = read(damaged)
            for value in found.values() if isinstance(found, dict) else ():
                if isinstance(value, PublishedModule):
                    value.state_dict()
        except UserError:
            refused += 1
    assert refused > len(data) / 4
