"""What a server gives to one request, to one client and to all together, so that its memory is
bounded. The numbers are for one process with one generator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from gan_train.inference import Generator

MOST_IMAGES = 64
"""The most images of one grid."""
_GRID_PIXELS = 1 << 24
"""The most pixels of one grid, before small ones are enlarged: 16 images of 1024 px."""
_PIXELS_IN_FLIGHT = 1 << 26
"""The most pixels of all answers that are being made: about 0.6 GB, with their copies."""
PICTURES_IN_FLIGHT = 4
"""The most pictures that are received, or wait to be upscaled or translated."""
PICTURE_BYTES = 8 << 20
PICTURE_PIXELS = 1 << 20
"""The largest picture that is taken. Translation takes about 1.2 KiB of memory for each pixel."""
BODY_S = 30.0
"""The longest time, in seconds, that the body of a request may take to arrive."""
REQUEST_S = 10.0
"""The longest time, in seconds, that a connection may go without a whole request. It may take twice
as long until that is noticed."""
REQUESTS_OF_A_CLIENT = 32
REQUESTS = 128
CONNECTIONS = 256
"""The most connections, idle ones included."""


class Refused(Exception):
    """A request that meets a limit: an HTTP status, and a sentence for the client."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Room:
    """Counts what is in use of something scarce. For one thread, that of the event loop."""

    def __init__(self, size: int, what: str) -> None:
        self.size, self.what, self.used = size, what, 0

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Hold so much of it. Raises Refused (503) when that much is not free."""
        if self.used + amount > self.size:
            raise Refused(503, f"too many {self.what} at the moment: try again in a second")
        self.used += amount
        try:
            yield
        finally:
            self.used -= amount


def pixels() -> Room:
    """The room for the pixels of all answers that are being made."""
    return Room(_PIXELS_IN_FLIGHT, "images are being drawn")


def pictures() -> Room:
    """The room for pictures that are sent."""
    return Room(PICTURES_IN_FLIGHT, "pictures are being worked on")


def most_images(generator: Generator) -> int:
    """The most images of a grid, by their size."""
    side = generator.shape.resolution
    return max(1, min(MOST_IMAGES, _GRID_PIXELS // side**2))


async def body_of(request: Request) -> bytes:
    """The body of a request. Raises Refused for one that is too large, as soon as that is known, or
    too slow."""
    too_large = Refused(413, f"the picture has more than {PICTURE_BYTES >> 20} MiB: send a smaller")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > PICTURE_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > PICTURE_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the picture took longer than {BODY_S:g} seconds to arrive") from None
    except ClientDisconnect:
        raise Refused(400, "the picture did not arrive") from None
    return bytes(body)
