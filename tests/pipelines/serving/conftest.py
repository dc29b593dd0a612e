"""Real servers on free ports, in threads of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import torch
from pydantic import TypeAdapter

from gan_train.adversary import ImageShape
from gan_train.families.catalogue import FamilyConfig
from gan_train.inference import Generator
from pipelines.serving.about import About
from pipelines.serving.app import application
from pipelines.serving.server import address_of, listen, server_of
from tests.training import stylegan

CLASSES = ("A", "<b onclick=alert(1)>", "c'd $(e)")
SRGAN: dict[str, Any] = {
    "name": "srgan",
    "scale": 2,
    "blocks": 1,
    "width": 2,
    "high_width": 2,
    "kernel": 3,
    "discriminator_width": 1,
}
CYCLEGAN: dict[str, Any] = {
    "name": "cyclegan",
    "halvings": 1,
    "width": 4,
    "blocks": 1,
    "discriminator_width": 4,
    "discriminator_layers": 1,
}


class Served:
    """A server, and a client that calls it."""

    def __init__(self, client: httpx.Client, state: Any) -> None:
        self.client, self.state = client, state

    def __call__(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)


@contextmanager
def running(app: Any) -> Iterator[httpx.Client]:
    with listen("127.0.0.1", 0) as listening:
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            with httpx.Client(base_url=address_of(listening), timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server of a generator."""
    with ExitStack() as stack:

        def start(generator: Generator, token: str | None = None, **known: Any) -> Served:
            about = About(generator, **{"name": "tiny", "weights": "ab" * 32} | known)
            app = application(about, token)
            return Served(stack.enter_context(running(app)), app.state)

        yield start


def untrained(family: dict[str, Any], shape: ImageShape) -> Generator:
    torch.manual_seed(0)
    config: FamilyConfig = TypeAdapter(FamilyConfig).validate_python(family)
    return Generator(config.build(shape, 4), family["name"])


@pytest.fixture(scope="session")
def styled() -> Generator:
    """A StyleGAN for RGB images of 8 px in three classes."""
    return untrained(stylegan(2), ImageShape(3, 8, CLASSES))


@pytest.fixture(scope="session")
def upscaler() -> Generator:
    """An SRGAN that doubles the sides of RGB pictures."""
    return untrained(SRGAN, ImageShape(3, 32))


@pytest.fixture(scope="session")
def translator() -> Generator:
    """A CycleGAN for RGB pictures."""
    return untrained(CYCLEGAN, ImageShape(3, 16))
