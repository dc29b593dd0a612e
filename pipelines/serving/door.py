"""What every request passes before a page or picture is made: who may come in, and how many.

A page of another site must not use the visitor's browser to reach a server on the visitor's own
machine (DNS rebinding). So a server without a token answers to names of this machine alone.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving import limits

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
"""The addresses on which a server needs no token, and the names by which it is then called."""

_HEADERS = {
    # nothing from elsewhere, and no script or style in the page itself: a name of a class or model
    # could not run as code even if it were not escaped
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Door:
    """Middleware that asks for the token, counts requests, and adds headers of security."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token
        self.inside: Counter[str] = Counter()  # requests in flight, by the client's address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or answer 401, 429 or 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, secured)
            return
        client = _client(scope)
        self.inside[client] += 1
        try:
            await self.app(scope, receive, secured)
        finally:
            self.inside[client] -= 1
            if not self.inside[client]:
                del self.inside[client]

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["path"] == "/health":  # whoever watches the server needs no token, nor a place
            return None
        if not self._knows_token(Headers(scope=scope)):
            asks = {"WWW-Authenticate": 'Basic realm="gan-train: any name, the token as password"'}
            why = "this server asks for its token: as a Bearer token, or as the password"
            return JSONResponse({"error": why}, 401, asks)
        wait = {"Retry-After": "1"}
        if self.inside[_client(scope)] >= limits.REQUESTS_OF_A_CLIENT:
            most = limits.REQUESTS_OF_A_CLIENT
            return JSONResponse({"error": f"at most {most} requests at a time"}, 429, wait)
        if self.inside.total() >= limits.REQUESTS:
            return JSONResponse({"error": "too many requests: try again soon"}, 503, wait)
        return None

    def _knows_token(self, headers: Headers) -> bool:
        """Programs send a Bearer token. Browsers ask for a name and a password by themselves."""
        if self.token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        return hmac.compare_digest(given.encode(), self.token.encode())


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""
