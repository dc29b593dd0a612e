"""How services are asked for their health, against a server that answers as they do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.stack import record, services
from pipelines.stack.record import MLFLOW, PREFECT, RAY, WORKER, Service, Stack

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Answers:
    """A server that answers with `status` and `body`, and keeps the pages it was asked for."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, b"[]", list[str]()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked.append(self.path)
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(told.status)
                self.send_header("content-length", str(len(told.body)))
                self.end_headers()
                self.wfile.write(told.body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def answers() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.server.shutdown()
    answers.server.server_close()


@pytest.fixture
def stack(tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(record, "is_marked", lambda pid, mark: pid == 1)  # 1 runs, others do not
    stack = Stack.of(tmp_path)
    stack.make()
    stack.keep(
        {
            name: Service(1, "mark", NOW.isoformat(), answers.address)
            for name in (PREFECT, WORKER, MLFLOW, RAY)
        }
    )
    return stack


@pytest.mark.parametrize(
    ("name", "page"),
    [(PREFECT, "/api/health"), (MLFLOW, "/health"), (RAY, "/api/gcs_healthz")],
)
def test_a_service_is_healthy_if_its_page_answers(
    stack: Stack, answers: Answers, name: str, page: str
) -> None:
    service = stack.services[name]
    assert services.healthy(stack, name, service) and answers.asked == [page]
    answers.status = 503
    assert not services.healthy(stack, name, service)
    answers.server.server_close()
    assert not services.healthy(stack, name, service)
    ended = Service(2, "mark", NOW.isoformat(), answers.address)
    assert not services.healthy(stack, name, ended)


def test_a_worker_is_healthy_if_the_server_has_heard_of_it_since(
    stack: Stack, answers: Answers
) -> None:
    def heard(status: str, after_s: float) -> bool:
        beat = (NOW + timedelta(seconds=after_s)).isoformat()
        answers.body = json.dumps([{"status": status, "last_heartbeat_time": beat}]).encode()
        return services.healthy(stack, WORKER, stack.services[WORKER])

    assert heard("ONLINE", 1)
    assert not heard("ONLINE", -1), "that was a worker before this one"
    assert not heard("OFFLINE", 1)
    answers.status = 401
    assert not heard("ONLINE", 1)
    stack.keep({WORKER: stack.services[WORKER]})
    assert not services.healthy(stack, WORKER, stack.services[WORKER]), "no server to ask"


def test_free_ports_are_others_where_the_wanted_ones_are_taken(answers: Answers) -> None:
    taken = answers.server.server_port
    found = services.free_ports(taken, 0, 0)
    assert taken not in found and len(set(found)) == 3
