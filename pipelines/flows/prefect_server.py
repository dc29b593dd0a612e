"""The process of Prefect's API server that `prefect_env` starts for the time of one command.

It listens on a socket that it inherits. It runs in a session of its own, because Ctrl-C in a
terminal reaches every process of a session, and the command still has to tell the server that it
was stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading


def main(descriptor: int) -> None:
    """Serve on the listening socket `descriptor` until standard input ends, as it does when the
    parent closes it or dies."""
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_end_with_parent, daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True), log_level="error"))
    server.run(sockets=[socket.socket(fileno=descriptor)])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent closes the pipe, or has ended in any way
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
