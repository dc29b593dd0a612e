"""A lock on the tracking server: one after the other chooses the champion of a model.

MLflow writes aliases and tags unconditionally, so the lock is made of what its database numbers:
the versions of a registered model, each number given once and never again. Whoever wants to choose
draws a ticket, which is a version of the model `MODEL`, and waits until all older tickets for the
same model are gone. A ticket is only ever made, and deleted by its number. Nobody waits for ever:
the oldest ticket, seen as the oldest for `LIFE_S`, belongs to a dead process, and whoever waits
deletes it. No clocks are compared. What is left to chance stands in
docs/decisions/0035-turns-on-the-tracking-server.md.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipelines.registry.tracking import existing_allowed, failures, is_missing

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "gan-train-turns"
LIFE_S = 30.0
"""The seconds after which the holder of the oldest ticket counts as dead; a turn takes one or
two."""
POLL_S = 0.2
_SOURCE = "gan-train:/turn"
"""MLflow asks for the place of a version's files. A ticket has none."""
_ABOUT = (
    "No model: its versions are the tickets of those who choose a champion at this moment, and it "
    "has none while nobody does. Leave it here: without it, numbers would be given twice."
)


@contextmanager
def turn(client: MlflowClient, model: str) -> Iterator[Callable[[], bool]]:
    """Wait for the turn to choose the champion of `model`, and have it until the block ends.

    Yields a question: whether the turn is still this one's, or was given to another because it took
    more than `LIFE_S`. Raises one of `tracking.failures()` when the server is away.
    """
    owner = uuid.uuid4().hex
    try:
        _draw(client, model, owner)
        oldest, since = 0, time.monotonic()
        while (first := _oldest(client, model)) is None or first[1] != owner:
            if first is None:  # this one's ticket was taken for a dead process's
                _draw(client, model, owner)
                continue
            if first[0] != oldest:
                oldest, since = first[0], time.monotonic()
            elif time.monotonic() - since > LIFE_S:
                _delete(client, oldest)
            time.sleep(POLL_S)

        def kept() -> bool:
            now = _oldest(client, model)
            return now is not None and now[1] == owner

        yield kept
    finally:
        with suppress(*failures()):  # a ticket that stays is deleted by whoever comes next
            for number in _tickets(client, f"tags.owner = '{owner}'"):
                _delete(client, number)


def _draw(client: MlflowClient, model: str, owner: str) -> None:
    for _ in range(2):
        try:
            tags = {"model": model, "owner": owner}
            client.create_model_version(MODEL, _SOURCE, tags=tags, await_creation_for=0)
            return
        except failures() as error:
            if not is_missing(error):
                raise
        with existing_allowed():
            client.create_registered_model(MODEL, description=_ABOUT)
    raise AssertionError("unreachable")


def _tickets(client: MlflowClient, which: str) -> dict[int, str]:
    """The tickets there are: number and owner, the oldest first."""
    while True:
        found = client.search_model_versions(f"name = '{MODEL}' AND {which}", max_results=1000)
        # a server reads tags after versions: a ticket that was deleted in between has none
        if all("owner" in ticket.tags for ticket in found):
            return dict(sorted((int(ticket.version), ticket.tags["owner"]) for ticket in found))


def _oldest(client: MlflowClient, model: str) -> tuple[int, str] | None:
    return next(iter(_tickets(client, f"tags.model = '{model}'").items()), None)


def _delete(client: MlflowClient, number: int) -> None:
    try:
        client.delete_model_version(MODEL, str(number))
    except failures() as error:  # another one who waits was faster
        if not is_missing(error):
            raise
