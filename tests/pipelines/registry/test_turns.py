"""Who becomes champion where several promote at once, from workspaces that know nothing of each
other; on a real server, on SQLite."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.registry import aliases, reigns, turns, versions
from pipelines.registry.tracking import connect
from tests.pipelines.registry_runs import METRIC, config, index, protocol
from tests.pipelines.registry_server import Server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]

_PROMOTER = """
import json, os, sys
from mlflow import MlflowClient
from gan_train.config import Config
from pipelines.registry import aliases, turns
from pipelines.registry.tracking import connect

client = connect(Config.model_validate_json(sys.argv[1]))

def die_at(writer):
    def call(*args, **kwargs):
        os.kill(os.getpid(), 9)
    setattr(MlflowClient, writer, call)

print("ready", flush=True)
for line in sys.stdin:
    name, tags, deadly = json.loads(line)
    version = client.create_model_version(name, "test:/nothing", tags=tags)
    if deadly and os.fork() == 0:
        die_at(deadly)
        aliases.appoint(client, version)
    elif deadly:
        assert os.waitstatus_to_exitcode(os.wait()[1]) == -9
        print(json.dumps(["killed"]), flush=True)
    else:
        alias = aliases.appoint(client, version, seeds=0.0).alias
        print(json.dumps([int(version.version), alias]), flush=True)
"""


def scored(score: float, error: float | None = None) -> dict[str, str]:
    """The tags of a version with this score."""
    tags = {"metric": METRIC, "score": str(score), "protocol": json.dumps(protocol(index()))}
    if error is not None:
        tags["scores"] = json.dumps({METRIC: score, f"{METRIC}_se": error})
    return tags


def made(client: Any, name: str, score: float) -> Any:
    """A new version of a model."""
    return client.create_model_version(name, "test:/nothing", tags=scored(score))


class Promoter:
    """A process that registers versions and promotes them, from a workspace of its own."""

    def __init__(self, settings: Config) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROMOTER, settings.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, name: str, score: float, deadly: str = "", error: float | None = None) -> None:
        tags = scored(score, error)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, tags, deadly]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> list[Any]:
        assert self.process.stdout is not None
        return list(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def promoters(tmp_path: Path) -> Iterator[Callable[..., list[Promoter]]]:
    """Starts promoters at a server."""
    with ExitStack() as started:

        def start(number: int, uri: str) -> list[Promoter]:
            made = []
            for one in range(number):
                settings = config(tmp_path / f"workspace-{one}", tracking_uri=uri)
                made.append(Promoter(settings))
                started.callback(made[-1].end)
            for promoter in made:
                promoter.ready()
            return made

        yield start


def new_model(client: Any, name: str) -> str:
    client.create_registered_model(name)
    return name


def contest(client: Any, name: str, promoters: list[Promoter], scores: list[float]) -> None:
    """All promote at once; the best is champion, and each champion was better than the one
    before."""
    new_model(client, name)
    for promoter, score in zip(promoters, scores, strict=True):
        promoter.ask(name, score, error=0.01)  # all differences are beyond chance
    said = dict(promoter.answer() for promoter in promoters[: len(scores)])
    by_number = {
        int(found.version): float(found.tags["score"])
        for found in client.search_model_versions(f"name = '{name}'")
    }
    model = client.get_registered_model(name)
    best = min(by_number, key=lambda number: by_number[number])
    assert int(model.aliases["champion"]) == best and said[best] == "champion"
    reigned = [by_number[reign.version] for reign in reigns.of(model)]
    assert reigned == sorted(reigned, reverse=True) and reigned[-1] == min(scores)
    assert [reign.version for reign in reigns.of(model)] == sorted(
        (number for number, alias in said.items() if alias == "champion"),
        key=lambda number: -by_number[number],
    )


@pytest.mark.fault(
    "two promotions at once from two workspaces", "the best version is champion in the end"
)
def test_the_best_of_those_at_once_is_champion(
    server: Server, promoters: Any, tmp_path: Path
) -> None:
    client = connect(config(tmp_path, tracking_uri=server.uri))
    shuffled = random.Random(0)
    at_once = promoters(4, server.uri)
    for attempt in range(8):
        number = 4 if attempt % 2 else 2
        scores = [30.0 + one for one in range(number)]
        shuffled.shuffle(scores)
        contest(client, f"contest-{attempt}", at_once[:number], scores)

    # where chance explains all differences, whoever comes first stays champion
    new_model(client, "ties")
    for promoter, score in zip(at_once, (30.0, 30.5, 31.0, 31.5), strict=True):
        promoter.ask("ties", score, error=1.0)
    said = dict(promoter.answer() for promoter in at_once)
    (reign,) = reigns.of(client.get_registered_model("ties"))
    assert [number for number, alias in said.items() if alias == "champion"] == [reign.version]


@pytest.mark.fault(
    "a promoter killed between two writes",
    "others promote after the life of its turn; promoting again completes it",
)
def test_a_killed_promoter(
    workspace: Path, promoters: Any, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Killed with the ticket but no alias, and before each write that follows."""
    monkeypatch.setattr(turns, "LIFE_S", 1.0)
    settings = config(workspace)
    client = connect(settings)
    uri = f"sqlite:///{workspace}/mlflow.db"
    writers = [
        *("set_registered_model_alias", "set_model_version_tag", "update_registered_model"),
        *("set_registered_model_tag", "delete_model_version"),
    ]
    (deadly,) = promoters(1, uri)
    slowest = 0.0
    for writer in writers:
        name = new_model(client, f"killed-{writer}")
        first = made(client, name, 40.0)
        assert aliases.appoint(client, first).alias == "champion"
        deadly.ask(name, 35.0, writer)
        assert deadly.answer() == ["killed"]
        # another one is not held up for long, and compares with the right one
        since = time.monotonic()
        third = aliases.appoint(client, made(client, name, 37.0))
        slowest = max(slowest, time.monotonic() - since)
        again = aliases.appoint(client, client.get_model_version(name, "2"))
        better = writer == "set_registered_model_alias"  # version 2 was not champion yet
        assert (third.alias, again.alias) == ("champion" if better else "challenger", "champion")
        model = client.get_registered_model(name)
        reigned = [(reign.version, reign.reason) for reign in reigns.of(model)]
        why = client.get_model_version(name, "2").tags["reason"]
        of = "37 of champion version 3" if better else "40 of champion version 1"
        assert why == f"{METRIC} 35 is better than {of}"
        between = [(3, third.reason)] if better else []
        assert reigned == [(1, f"first scored version, {METRIC} 40"), *between, (2, why)]
        assert int(model.aliases["champion"]) == 2
    record_property("recovered_s", slowest)
    record_property("lost", "nothing; others wait 30 s (here 1 s)")


@pytest.mark.fault(
    "the registry's server down while promoting",
    "one line says so; the same command completes it once the server is back",
)
def test_a_server_killed_while_promoting(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(turns, "LIFE_S", 1.0)
    settings = config(tmp_path, tracking_uri=server.uri, model="down")
    client = connect(settings)
    new_model(client, "down")
    assert aliases.appoint(client, made(client, "down", 40.0)).alias == "champion"
    made(client, "down", 50.0)
    with monkeypatch.context() as patch:

        def die(*args: Any, **kwargs: Any) -> None:
            server.kill()
            real(*args, **kwargs)

        real = MlflowClient.set_model_version_tag
        patch.setattr(MlflowClient, "set_model_version_tag", die)
        with pytest.raises(UserError, match="nothing is lost"):
            versions.promote(settings, 2)
    server.start()
    since = time.monotonic()
    done = versions.promote(settings, 2)
    record_property("recovered_s", time.monotonic() - since)
    assert (done.alias, done.reason) == ("champion", "promoted by hand over version 1")
    reigned = reigns.of(client.get_registered_model("down"))
    assert [reign.version for reign in reigned] == [1, 2] and reigned[1].reason == done.reason


def test_a_turn_that_was_taken_for_dead_is_repeated(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who slept for longer than the life of a turn puts the better champion back."""
    client = connect(config(workspace))
    name = new_model(client, "slept")
    aliases.appoint(client, made(client, name, 40.0))
    slow, better = made(client, name, 35.0), made(client, name, 30.0)
    give = aliases._give
    slept: list[str] = []

    def sleep(*arguments: Any) -> aliases.Given:
        if not slept:
            slept.append("once")
            monkeypatch.setattr(turns, "LIFE_S", 0.5)
            assert aliases.appoint(client, better).alias == "champion"
        return give(*arguments)

    monkeypatch.setattr(aliases, "_give", sleep)
    assert aliases.appoint(client, slow).alias == "challenger"
    model = client.get_registered_model(name)
    assert int(model.aliases["champion"]) == 3 and slept
