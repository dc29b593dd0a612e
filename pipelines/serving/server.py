"""What the server of a generator needs to run: a token, a socket, and uvicorn with its limits."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from gan_train.errors import UserError
from pipelines.serving import limits
from pipelines.serving.door import LOCAL_NAMES

TOKEN = "GAN_TRAIN_SERVE_TOKEN"  # noqa: S105  a variable
_LEAST_TOKEN = 16


def token_for(host: str, file: Path | None) -> str | None:
    """The token that clients must know: that in `file`, or in the variable `TOKEN`; None if there
    is none. Raises UserError for a short one, and where other machines could come without one."""
    given = os.environ.get(TOKEN)
    if file is not None:
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--token-file {file}: cannot be read: {error}") from error
    if given is not None and len(given) < _LEAST_TOKEN:
        raise UserError(
            f"the token has {len(given)} characters, at least {_LEAST_TOKEN} are needed: make one "
            "with `openssl rand -hex 16 > token`, and name it by --token-file token"
        )
    if given is None and host not in LOCAL_NAMES:
        raise UserError(
            f"--host {host} lets other machines in, so a token is needed: make one with `openssl "
            "rand -hex 16 > token`, and name it by --token-file token; or leave out --host"
        )
    return given


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where that is not possible."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: allowed: 0 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on ({error}): name another --port or --host"
        ) from error


class Timed(H11Protocol):
    """A connection that is closed where no request arrives. Uvicorn waits for the rest of a request
    without end, and with all of its connections for such requests it would refuse all others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the connection from now on."""
        super().connection_made(transport)
        self.loop.call_later(limits.REQUEST_S, self._look, None)

    def _look(self, last: object) -> None:
        """Close the connection if it has waited since the last look, when `last` was answered."""
        if self.transport.is_closing():
            return
        request = self.cycle
        waits = request is None or request.response_complete
        if waits and request is last:
            self.transport.close()
        else:
            self.loop.call_later(limits.REQUEST_S, self._look, request if waits else object())


def server_of(app: FastAPI) -> uvicorn.Server:
    """A server that is not started yet."""
    settings = uvicorn.Config(
        app,
        http=Timed,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # limits are by the address that a connection comes from
        server_header=False,
        ws="none",
        limit_concurrency=limits.CONNECTIONS,
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(settings)


def address_of(listening: socket.socket) -> str:
    """The address at which a browser finds the server that has this socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
