"""The process of Prefect's API server that `prefect_env` starts for the time of one command.

It listens on a socket that it inherits. The command still has to tell the server that it was
stopped, so what stops the command must not reach the server: Ctrl-C in a terminal reaches every
process of a session, hence a session of its own; SIGTERM reaches all processes of a Ray job, and is
ignored until the parent has ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docket import Worker

CHECK_EVERY = timedelta(seconds=5)
"""How often the server looks for background tasks; Prefect's server looks every 0.25 s."""


def main(descriptor: int) -> None:
    """Serve on the listening socket `descriptor` until standard input ends, as it does when the
    parent closes it or dies."""
    import uvicorn
    from docket import Worker
    from prefect.server.api import background_workers
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if parent_ended.is_set():
                super().handle_exit(sig, frame)

    background_workers.Worker = patient(Worker)  # type: ignore[attr-defined, assignment]
    parent_ended = threading.Event()
    threading.Thread(target=_end_with_parent, args=[parent_ended], daemon=True).start()
    server = Server(uvicorn.Config(create_app(ephemeral=True), log_level="error"))
    server.run(sockets=[socket.socket(fileno=descriptor)])


def patient(worker: type[Worker]) -> Callable[..., Worker]:
    """A class that looks for background tasks, made to look every `CHECK_EVERY`.

    Background tasks tidy up after deployments and deleted runs. Looking for them takes most of the
    time of a server that has nothing else to do, and Prefect has no setting for it.
    """
    return partial(worker, minimum_check_interval=CHECK_EVERY, scheduling_resolution=CHECK_EVERY)


def _end_with_parent(parent_ended: threading.Event) -> None:
    sys.stdin.buffer.read()  # returns when the parent closes the pipe, or has ended in any way
    parent_ended.set()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
