"""A stream is data: whatever it names or asks for, nothing is imported, called or written."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_train.errors import UserError
from gan_train.published import pickle_stream
from gan_train.published.pickle_stream import Name, StreamError, read_pickle
from gan_train.published.torch_values import read_modules
from tests.unit.published.streams import dumped, module

PROTOCOLS = (2, 3, 4, 5)


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), {})


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


# ---- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back_as_they_were(protocol: int) -> None:
    shared = ["x"]
    value = {
        "numbers": [0, -1, 255, 65536, 2**40, -(2**100), 1.5, float("-inf")],
        "others": (None, True, False, "é\u2028", "", ()),
        "nested": {1: [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], None: {}},
        "twice": [shared, shared],
    }
    if protocol >= 3:
        value["bytes"] = [b"", b"\x00\xff", bytes(70_000)]
    if protocol >= 4:
        value["set"] = {"a", "b"}
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert found["twice"][0] is found["twice"][1]


_LEAVES = st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False)
_VALUES = st.recursive(
    _LEAVES | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-9, 9), inner)
    ),
)


@settings(deadline=None, max_examples=150)
@given(_VALUES, st.sampled_from((3, 4, 5)))
def test_the_machine_agrees_with_pickle(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


def test_text_and_mark_instructions_of_old_streams() -> None:
    assert read(b"(lp0\nI1\naI01\naL7L\naF0.5\naVa\\u00e9\na.") == [1, True, 7, 0.5, "aé"]
    assert read(b"(I1\nI2\nt.") == (1, 2)
    assert read(b"(Va\nI1\nd.") == {"a": 1}
    assert read(b"I1\nI2\n0.") == 1
    assert read(b"I1\n(I2\n1.") == 1
    assert read(b"I1\n(0.") == 1


# ---- what is refused ---------------------------------------------------------------------------


def bomb(function: Any, *arguments: Any) -> Any:
    return Calls(function, *arguments)


HOSTILE: dict[str, tuple[Any, str]] = {
    "system": (bomb(os.system, "touch SPRUNG"), r"(posix|nt)\.system"),
    "eval": (bomb(builtins.eval, "open('SPRUNG', 'w')"), r"builtins\.eval"),
    "exec": (bomb(builtins.exec, "open('SPRUNG', 'w')"), r"builtins\.exec"),
    "open": (bomb(open, "SPRUNG", "w"), r"io\.open"),
    "popen": (bomb(subprocess.Popen, ["touch", "SPRUNG"]), r"subprocess\.Popen"),
    "getattr": (bomb(getattr, 1, "real"), r"builtins\.getattr"),
    "import": (bomb(__import__, "this"), r"builtins\.__import__"),
    "instance": (zipfile.ZipInfo("x"), r"copyreg\._reconstructor|zipfile"),
    "state": (Calls(OrderedDict, state={"x": 1}), "collections.OrderedDict"),
    "torch": (bomb(torch.load, "SPRUNG"), r"torch\.serialization\.load"),
    "function": ([os.system], r"(posix|nt)\.system"),
    "complex": (1j, r"builtins\.complex"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", HOSTILE)
def test_calls_are_refused_by_name_and_leave_no_trace(
    case: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, named = HOSTILE[case]
    file = tmp_path / "in" / "networks.pkl"
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({"G": value}, protocol, fix_imports=False))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(UserError, match=f"names {named}"):
        read_pickle(io.BytesIO(file.read_bytes()), {})
    # Published files may name OrderedDict, but not give it a state
    with pytest.raises(UserError, match=f"names {named}|gives a state to dict"):
        read_modules(file)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "networks.pkl"]
    assert set(sys.modules) == before


def test_a_name_that_no_module_has_is_refused_and_not_looked_for() -> None:
    for data in (
        b"cno_such_module_anywhere\nthing\n.",
        b"\x80\x04\x8c\x17no_such_module_anywhere\x8c\x05thing\x93.",
        b"cthis\ns\n.",  # a module that prints when it is imported
    ):
        with pytest.raises(StreamError, match=r"names (no_such_module_anywhere\.thing|this\.s)"):
            read(data)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("data", "instruction"),
    [
        (b"Pid\n.", "PERSID"),
        (b"X\x01\x00\x00\x00aQ.", "BINPERSID"),
        (b"(S'echo'\nios\nsystem\n.", "STRING"),
        (b"(Vecho\nios\nsystem\n.", "INST"),
        (b"(N(o.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"N)}\x92.", "NEWOBJ_EX"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"N\x98.", "READONLY_BUFFER"),
        (b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "BYTEARRAY8"),
        (b"\x8c\x01a2.", "DUP"),
    ],
)
def test_other_instructions_are_refused_by_name(data: bytes, instruction: str) -> None:
    with pytest.raises(StreamError, match=rf"uses {instruction}\b"):
        read(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"NNR.", "calls NoneType"),
        (b"N)\x81.", "calls NoneType"),
        (b"\x8c\x02os)R.", "calls str"),
        (b"}}b.", "gives a state to dict"),
        (b"}b.", "gives a state to NoneType"),
        (b"NNa.", "adds to NoneType"),
        (b"]N\x8c\x01as.", "adds to list"),
        (b"N(Ne.", "adds to NoneType"),
        (b"}((NtNu.", "uses a tuple as a key"),
        (b"}(NNNu.", "a key has no value"),
        (b"\x8f(]\x90.", "uses a list as a key"),
        (b"}(G?\xf0\x00\x00\x00\x00\x00\x00Nu.", "uses a float as a key"),
        (b"h\x05.", "recalls"),
        (b"q\x00.", "stores a value where there is none"),
        (b"\x94.", "stores a value where there is none"),
        (b".", "does not end with one value"),
        (b"NN.", "does not end with one value"),
        (b"N(N.", "does not end with one value"),
        (b"N\x86.", "takes a value where there is none"),
        (b"t.", "ends a container"),
        (b"0.", "ends a container"),
        (b"NN\x93.", "a name is no text"),
        (b"", "damaged or cut off"),
        (b"N", "damaged or cut off"),
        (b"\xff", "damaged or cut off"),
        (b"I12x\n.", "damaged or cut off"),
        (b"\x8c\x02\xff\xff.", "damaged or cut off"),
        (b"B\xff\xff\xff\x7fabc.", "damaged or cut off"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged or cut off"),
        (b"\x8b\x10\x00\x00\x7fabc.", "damaged or cut off"),
        (b"\x8a\x20" + bytes([1] * 32) + b".", "more than 128 bits"),
    ],
)
def test_nonsense_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(StreamError, match=what):
        read(data)


def test_a_name_in_the_vocabulary_can_be_called_only_if_it_has_a_builder() -> None:
    vocabulary = {Name("m", "f"): None, Name("m", "g"): lambda arguments: ["built", *arguments]}
    assert read_pickle(io.BytesIO(b"cm\ng\n(I1\ntR."), vocabulary) == ["built", 1]
    assert read_pickle(io.BytesIO(b"cm\ng\n)\x81."), vocabulary) == ["built"]
    assert read_pickle(io.BytesIO(b"cm\nf\n."), vocabulary) == Name("m", "f")
    for data, what in (
        (b"cm\nf\n)R.", r"calls m\.f"),
        (b"cm\ng\n]R.", r"calls m\.g"),  # arguments are a tuple
        (b"cm\ng h\n)R.", r"names m\.g h"),
    ):
        with pytest.raises(StreamError, match=what):
            read_pickle(io.BytesIO(data), vocabulary)


# ---- bounds ------------------------------------------------------------------------------------


def test_values_that_repeat_each_other_stay_small() -> None:
    """Each list holds the one before twice: 2^200 leaves if it were unfolded."""
    value: Any = ["ha"]
    for _ in range(200):
        value = [value, value]
    found = read(pickle.dumps(value, 4))
    assert found[0] is found[1]
    # as the modules of a file, they would take for ever to walk
    layer = module("Layer", {})
    for _ in range(60):
        above = module("Layer", {})
        above.state["_modules"] |= {"a": layer, "b": layer}
        layer = above
    stored = read_pickle(io.BytesIO(dumped(layer)), vocabulary())
    with pytest.raises(StreamError, match=r"deeper than 16|more than 10000 modules"):
        stored.state_dict()  # type: ignore[attr-defined]


def vocabulary() -> Any:
    from gan_train.published.torch_values import _Builders

    return _Builders(10**6).vocabulary()


def test_values_that_contain_themselves_are_read_and_refused_as_modules(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    found = read(pickle.dumps(ring, 4))
    assert found[0] is found

    layer = module("Layer", {})
    table = layer.state["_modules"]
    state = read_pickle(io.BytesIO(dumped(layer)), vocabulary())
    state.state["_modules"]["self"] = state  # type: ignore[attr-defined]
    assert table == {}
    with pytest.raises(StreamError, match="deeper than 16"):
        state.state_dict()  # type: ignore[attr-defined]


def test_nesting_instructions_and_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StreamError, match="deeper than 200"):
        read(b"(" * 201 + b"N" + b"l" * 201 + b".")
    # a tuple in a tuple in a tuple is no danger: nothing here walks it
    read(b")" + b"\x85" * 100_000 + b".")
    monkeypatch.setattr(pickle_stream, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(StreamError, match="more than 1000 instructions"):
        read(b"N0" * 500 + b"N.")
    assert read(b"N0" * 499 + b"N.") is None
    monkeypatch.setattr(pickle_stream, "MAX_TEXT", 5)
    assert read(pickle.dumps("12345", 4)) == "12345"
    with pytest.raises(StreamError, match="more than 5 characters"):
        read(pickle.dumps("123456", 4))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(StreamError):
        read(data)


def test_every_cut_of_a_stream_is_refused() -> None:
    data = pickle.dumps({"a": [1, 2.5, (b"x" * 300, "y")], "b": {"c"}}, 4)
    for length in range(len(data)):
        with pytest.raises(StreamError):
            read(data[:length])


def test_lengths_that_lie_allocate_nothing() -> None:
    for head in (b"B", b"X"):
        with pytest.raises(StreamError, match="damaged or cut off"):
            read(head + struct.pack("<I", 2**31 - 1) + b"short")
