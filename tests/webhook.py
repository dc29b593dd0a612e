"""A web hook on loopback, as chat services have them, to which a Prefect server sends messages."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.prefect_site import INFRA, PREFECT, Site

NOBODY = "00000000-0000-0000-0000-000000000000"
"""The block of infra/prefect/automations.yaml, which does not exist."""
MAKE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
message = {"subject": "{{subject}}", "body": "{{body}}"}
block = CustomWebhookNotificationBlock(name="team", url=sys.argv[1], json_data=message)
print("block", block.save("team"))
"""


class Webhook(ThreadingHTTPServer):
    """A server that keeps the JSON bodies that are posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.messages: list[dict[str, str]] = []

    def bodies(self, subject: str) -> list[str]:
        """The bodies of the messages whose subject this pattern matches."""
        return [sent["body"] for sent in self.messages if re.search(subject, sent["subject"])]


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.messages.append(
            json.loads(self.rfile.read(int(self.headers["content-length"])))
        )
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing on standard error."""


@contextmanager
def told_by(site: Site) -> Iterator[Webhook]:
    """Receives what the automations of infra/prefect send; they are made on the site."""
    with Webhook() as hook:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        made = site.call(sys.executable, "-c", MAKE_BLOCK, hook.url)
        (block,) = re.findall(r"^block (\S+)$", made, re.MULTILINE)
        file = site.folder / "automations.yaml"
        file.write_text((INFRA / file.name).read_text().replace(NOBODY, block))
        site.call(PREFECT, "automation", "create", "--from-file", str(file))
        yield hook
        hook.shutdown()
