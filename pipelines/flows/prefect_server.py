"""Prefect's API server for the time of one command, as a process: `prefect_env` starts it.

It listens on the socket that it is given, in a session of its own: Ctrl-C in a terminal reaches
every process of the command, and the command still has to tell the server that it was stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading


def main(descriptor: int) -> None:
    """Serve on the listening socket `descriptor` until standard input ends, as its parent does."""
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_parent, daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True), log_level="error"))
    server.run(sockets=[socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent closes it or is gone, however it ended
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
