"""Both servers are asked for nonsense: `gan-train serve`, and MLflow's server of a version."""

from __future__ import annotations

import base64
import io
import json
import resource
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from gan_train import recipes
from gan_train.adversary import Clock, ImageShape
from gan_train.inference import Generator
from gan_train.runs.checkpoint import save_generator
from pipelines.registry import logged_model
from pipelines.serving import limits
from tests.pipelines.registry_runs import config
from tests.pipelines.serving.conftest import CYCLEGAN, SRGAN, Serve, running, untrained
from tests.training import stylegan

FAMILIES: dict[str, tuple[dict[str, Any], ImageShape]] = {
    "generate": (stylegan(2), ImageShape(3, 8, ("A", "B"))),
    "upscale": (SRGAN, ImageShape(3, 32)),
    "translate": (CYCLEGAN, ImageShape(3, 16)),
}
MEMORY_MIB = 500
"""More than the largest picture that is taken needs, and less than a bomb."""
Send = Callable[[Any], int]


@contextmanager
def mlflows(task: str, folder: Path) -> Iterator[Send]:
    """MLflow's server of a model of the task: what is yielded sends `inputs`, and tells the
    status."""
    from mlflow.models import Model
    from mlflow.pyfunc import load_model, scoring_server

    family, shape = FAMILIES[task]
    settings = recipes.change(config(folder), {"family": family})
    adversary = untrained(family, shape).adversary
    weights = {
        f"{part}.{name}": tensor
        for part in adversary.averaged
        for name, tensor in getattr(adversary, part).state_dict().items()
    }
    (folder / "weights").mkdir()
    save_generator(folder / "weights", weights, settings, shape, Clock(1000, 64_000))
    logged_model.save(folder / "weights", folder / "model", Model(artifact_path="model"))
    with running(scoring_server.init(load_model(str(folder / "model")))) as client:

        def send(inputs: Any) -> int:
            body = inputs if isinstance(inputs, str) else json.dumps({"inputs": inputs})
            headers = {"Content-Type": "application/json"}
            return client.post("/invocations", content=body, headers=headers).status_code

        yield send


def ours(task: str, serve: Serve) -> Send:
    """`gan-train serve`: what is returned asks for an address or sends a picture, and tells the
    status."""
    client = serve(untrained(*FAMILIES[task])).client
    to = "?to=B" if task == "translate" else ""

    def send(asked: str | bytes) -> int:
        if isinstance(asked, str):
            return client.get(asked).status_code
        return client.post(f"/image.png{to}", content=asked).status_code

    return send


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG file of so many pixels, and further chunks in it, but with the bytes of a few rows."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(4096)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), *more, pixels, chunk(b"IEND", b"")]
    )


def pictures() -> list[bytes]:
    whole = io.BytesIO()
    Image.new("1", (9000, 9000)).save(whole, "PNG")  # ten kilobytes
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000)))
    cut = png(16, 16)[:48]
    return [b"", b"no picture", cut, png(60_000, 60_000), png(4, 4, text), whole.getvalue()]


ADDRESSES = [
    "/grid.png?seeds=0-999999999999",
    "/image.png?seed=" + "9" * 4000,
    *("/image.png?seed=nan", "/image.png?seed=-1", "/image.png?truncation=inf"),
    *("/image.png?truncation=1e308", "/image.png?class=" + "A" * 50_000),
    "/image.png?class=" + quote("\x1b[2J\0"),
    *("/grid.png?columns=1e9", "/mix.png?layers=0-99999999999"),
]
ROWS: list[Any] = [
    [{"seed": 1, "label": "A"}] * 100_000,
    *([{"seed": seed, "label": "A"}] for seed in (-1, 2**63, 10**300, float("nan"), 1e300)),
    *([{"z": [x] * 8, "label": "A"}] for x in (float("nan"), float("inf"), 1e39)),
    [{"z": [0.5] * 100_000, "label": "A"}],
    *([{"seed": 1, "label": label}] for label in ("A" * 1_000_000, "9" * 5000, -1, "²")),
    [{"seed": 1, "label": "A", "truncation": 1e308}],
    *([], None, {}, [1], [[]], [{}]),
    "no JSON",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's own types
@pytest.mark.parametrize("task", FAMILIES)
@pytest.mark.parametrize("server", ["gan-train serve", "mlflow models serve"])
@pytest.mark.fault(
    "a served model asked for nonsense: 100,000 rows, absurd numbers and names, pictures that are "
    "bombs or too large",
    "an error with status 400 or 413, in bounded memory; the server lives",
)
def test_nonsense_is_refused(server: str, task: str, serve: Serve, tmp_path: Path) -> None:
    good: Any
    if server == "gan-train serve":
        if task == "generate":
            good, bad = "/image.png?seed=1&class=A", [*ADDRESSES]
        else:
            good, bad = png(16, 16), [*pictures(), bytes(limits.PICTURE_BYTES + 1)]
        refused(ours(task, serve), good, bad)
        return
    if task == "generate":
        good, bad = [{"seed": 1, "label": "A"}], [*ROWS]
    else:
        to = {"to": "B"} if task == "translate" else {}
        good = [request(png(16, 16)) | to]
        bad = [[request(file) | to] for file in pictures()]
        bad += [good * 17, [request(png(1000, 1000)) | to] * 3, [good[0] | {"to": "x" * 100_000}]]
        bad += [[{"image": "é%"}], [{"image": 5}]]
    with mlflows(task, tmp_path) as send:
        refused(send, good, bad)


def request(file: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(file).decode()}


def refused(send: Send, good: Any, bad: Sequence[Any]) -> None:
    """What is bad is refused, without much memory, and what is good is answered after it."""
    assert send(good) == 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = {str(one)[:60]: send(one) for one in bad}
    assert set(statuses.values()) <= {400, 413}, statuses
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEMORY_MIB, f"{grown:.0f} MiB"
    assert send(good) == 200


@pytest.mark.fault(
    "more connections than `gan-train serve` takes, which say nothing or never end their request",
    "they are closed, and others are answered again",
)
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: ", b"POST / HTTP/1.1\r\n"])
def test_silent_connections_are_closed(
    said: bytes,
    serve: Serve,
    styled: Generator,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr(limits, "REQUEST_S", 2)
    monkeypatch.setattr(limits, "CONNECTIONS", 8)
    client = serve(styled).client
    address = client.base_url.host, client.base_url.port
    assert client.get("/health").status_code == 200
    with ExitStack() as held:
        for _ in range(8):
            held.enter_context(socket.create_connection(address)).sendall(said)
        begin = time.monotonic()
        for status in (503, 200):
            while client.get("/health").status_code != status:
                assert time.monotonic() - begin < 30
                time.sleep(0.05)
        record_property("recovered_s", time.monotonic() - begin)
