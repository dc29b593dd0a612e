"""Starts, ends and looks after the services of a workspace's stack."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from gan_train.errors import UserError
from gan_train.files.locks import locked_now
from pipelines.compute.cluster import HERE
from pipelines.stack import processes
from pipelines.stack.record import MLFLOW, PREFECT, RAY, SERVICES, WORKER, Service, Stack
from pipelines.stack.services import healthy, start_of

READY_S = 240.0
"""The longest wait for the services, in seconds: a first start makes their databases."""
PATIENCE_S = 60.0
"""How long a service may take to end before it is killed, in seconds."""
OTHER_SERVERS = {
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_PROFILE"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", HERE),
}
_POLL_S = 0.5
Say = Callable[[str], None]


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    """Keep other commands from starting or ending services meanwhile."""
    stack.make()
    try:
        with locked_now(stack.folder / ".lock"):
            yield
    except BlockingIOError:
        raise UserError(
            f"another `gan-train up` or `down` is at work in {stack.folder}; wait for its end"
        ) from None


def up(stack: Stack, cpus: int, say: Say) -> bool:
    """Start what does not run, and wait until all services are healthy; returns whether anything
    was started.

    Services that run stay as they are. If one does not become healthy, those that were started here
    are ended again, and UserError names its log.
    """
    with _alone(stack):
        for name, service in stack.services.items():
            if not service.alive:
                say(f"{name} had ended without `gan-train down`")
                _end(stack, name)
        if stack.services.keys() < set(SERVICES):  # the worker has to learn new addresses
            _end(stack, WORKER)
        missing = [name for name in SERVICES if name not in stack.services]
        with ExitStack() as undo:
            for group in ((PREFECT, MLFLOW, RAY), (WORKER,)):
                for name in group:
                    if name in missing:
                        say(f"starting {name}")
                        undo.callback(_end, stack, name)
                        undo.callback(say, f"ending {name}")
                        _start(stack, name, cpus)
                _wait(stack, group, say if missing else lambda line: None)
            stack.write_environment()
            undo.pop_all()  # nothing has failed, and nobody has interrupted
        return bool(missing)


def down(stack: Stack, say: Say) -> bool:
    """End the services that `up` has started; returns whether there were any.

    The worker ends first, and with it the flow runs that it has started; then what they use.
    """
    if not stack.folder.exists():
        return False
    with _alone(stack):
        there = [name for name in (WORKER, RAY, MLFLOW, PREFECT) if name in stack.services]
        for name in there:
            say(f"ending {name}")
            _end(stack, name)
        (stack.folder / "env.sh").unlink(missing_ok=True)
    return bool(there)


def states(stack: Stack) -> dict[str, str]:
    """How each service of the record is: `healthy`, `not answering` or `ended`."""
    found = {}
    for name, service in stack.services.items():
        if healthy(stack, name, service):
            found[name] = "healthy"
        else:
            found[name] = "not answering" if service.alive else "ended"
    return found


def _start(stack: Stack, name: str, cpus: int) -> None:
    """Start a service in a session of its own, so that it outlives the terminal."""
    how = start_of(stack, name, cpus)
    mark = secrets.token_hex(16)
    # a service finds its own scripts first, as in an activated environment
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = how.environment | {"PATH": path, processes.MARK: mark, **processes.ENVIRONMENT}
    with stack.log(name).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *how.arguments],
            cwd=stack.folder,
            env=_clean() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    since = datetime.now(UTC).isoformat()
    service = Service(process.pid, mark, since, how.address, how.port, how.temporary)
    stack.keep(stack.services | {name: service})


def _clean() -> dict[str, str]:
    """This process's environment without what names other servers, and how to log in there."""
    return {name: value for name, value in os.environ.items() if name not in OTHER_SERVERS}


def _end(stack: Stack, name: str) -> None:
    """End a service, dead or alive or not there, and forget it."""
    services = stack.services
    if service := services.pop(name, None):
        processes.end(service.pid, service.mark, PATIENCE_S)
        if service.temporary:
            shutil.rmtree(service.temporary, ignore_errors=True)
        stack.keep(services)


def _wait(stack: Stack, names: Sequence[str], say: Say) -> None:
    """Wait until the services are healthy. Raises UserError for one that ends or is late."""
    begin, waiting = time.monotonic(), list(names)
    while waiting:
        for name in list(waiting):
            service = stack.services[name]
            if healthy(stack, name, service):
                waiting.remove(name)
                say(f"{name} is healthy after {time.monotonic() - begin:.0f} s")
            elif not service.alive:
                raise UserError(f"{name} did not start; it said why in {stack.log(name)}")
        if waiting and time.monotonic() - begin > READY_S:
            raise UserError(
                f"{' and '.join(waiting)} did not answer within {READY_S:.0f} s; see "
                f"{stack.log(waiting[0])}; `gan-train down` ends what runs"
            )
        time.sleep(_POLL_S if waiting else 0)
