"""Mutated pickles of published networks: inert values, or `StreamError`."""

from __future__ import annotations

import io
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gan_train.published.pickle_stream import StreamError, read_pickle
from gan_train.published.torch_values import PublishedModule, read_modules
from tests.fuzz.runner import Target, main
from tests.unit.published.streams import dumped, module

ALLOWED = (StreamError,)
TOKENS = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"(S'x'\ntR.", b"\x93", b"R", b"b", b"\x81", b"\x92"),
    *(b"(" * 300, b"]" * 99, b"}", b")", b"\x8f", b"\x90", b"h\0", b"q\0", b"\x94", b"\x88", b"Q"),
    *(
        b"\x8d\xff\xff\xff\xff\0\0\0\0",
        b"\x8b\xff\xff\xff\x7f",
        b"T\xff\xff\xff\x7f",
        b"X\0\0\0\x10",
    ),
    *(
        b"I" + b"9" * 5000 + b"\n",
        b"Fnan\n",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        b".",
        b"0",
        b"2",
    ),
)


def seeds() -> list[bytes]:
    """Streams of every protocol, and a file of modules as networks are published."""
    value = {"a": [1, 2.5, None, True, "text"], "b": (1, (2, 3)), 3: {"c": [2**70, -1, 300]}}
    network = module(
        "Network",
        {"weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(4).half()},
    )
    return [*(pickle.dumps(value, protocol) for protocol in range(6)), dumped({"G": network})]


def target(folder: Path) -> Target:
    """Reads a pickle as a stream without names, and, from this folder, as modules."""

    def read(data: bytes) -> None:
        with suppress(StreamError):
            read_pickle(io.BytesIO(data), {}, persistent=lambda values: values)
        file = folder / "network.pkl"
        file.write_bytes(data)
        value = read_modules(file)
        for part in value.values() if isinstance(value, dict) else ():
            if isinstance(part, PublishedModule):
                list(part.named_modules())

    return read


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        sys.exit(main("pickles", target(Path(place)), seeds(), ALLOWED, TOKENS))
