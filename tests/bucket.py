"""A real S3 server for tests, and a proxy before it that injects faults."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

STARTUP_S = 60.0
_ASIDE = {"connection", "transfer-encoding", "content-length", "date", "server"}


@contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[int]:
    """moto's server, which speaks S3 over HTTP, at an address of this machine; yields its port."""
    with socket.create_server((host, 0)) as found:
        port: int = found.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", host, "--port", str(port)]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet
    )
    try:
        deadline = time.monotonic() + STARTUP_S
        while True:
            try:
                socket.create_connection((host, port)).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def make_bucket(port: int, name: str, host: str = "127.0.0.1") -> None:
    """Make a bucket on the server."""
    connection = http.client.HTTPConnection(host, port)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == http.client.OK
    connection.close()


def environment(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """What a client of the server finds in its environment."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


class Faults:
    """A proxy on `port`. Requests that match `fail` get its answer, and all others the server's.

    An answer is an HTTP status, or `cut`: half of the server's body, and an end of the connection.
    """

    def __init__(self, server: int) -> None:
        self._server, self._lock = server, Lock()
        self._rules: list[tuple[str, re.Pattern[str], int | str, int]] = []
        self.injected = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                proxy.forward(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        Thread(target=self._http.serve_forever, daemon=True).start()

    def fail(self, method: str, path: str, answer: int | str, times: int) -> None:
        """Answer the next `times` requests of this method whose path has the pattern `path`."""
        with self._lock:
            self._rules.append((method, re.compile(path), answer, times))

    def _answer(self, method: str, path: str) -> int | str | None:
        with self._lock:
            for place, (of, pattern, answer, times) in enumerate(self._rules):
                if of == method and pattern.search(path) and times > 0:
                    self._rules[place] = (of, pattern, answer, times - 1)
                    self.injected += 1
                    return answer
        return None

    def forward(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        answer = self._answer(request.command, request.path)
        if isinstance(answer, int):
            text = b"<Error><Code>SlowDown</Code></Error>"
            request.send_response(answer)
            request.send_header("content-length", str(len(text)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(text)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._server)
        upstream.request(request.command, request.path, body, dict(request.headers))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        request.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _ASIDE:
                request.send_header(name, value)
        length = response.getheader("content-length") if request.command == "HEAD" else None
        request.send_header("content-length", length or str(len(data)))
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(data[: len(data) // 2] if answer == "cut" else data)
        if answer == "cut":
            request.close_connection = True

    def close(self) -> None:
        """End the proxy."""
        self._http.shutdown()
        self._http.server_close()
