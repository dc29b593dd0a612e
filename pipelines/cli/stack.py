"""`gan-train up`, `status` and `down`: the servers of one machine, started and ended together."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import add_command

if TYPE_CHECKING:
    from pipelines.stack.record import Stack

_WORKSPACE = Path("runs")
UNHEALTHY = 1
NOT_UP = 3
"""The status by which init scripts say that a service does not run."""


def add(commands: Any) -> None:
    """Add the commands of the stack to a parser's list."""
    up = add_command(
        commands,
        "up",
        _up,
        "start Prefect with a worker, MLflow and a Ray head on this machine",
        "They listen on 127.0.0.1 alone, ask for a password or a token, and stay until `gan-train\n"
        "down`. Commands with this workspace find them by themselves, unless the recipe or the\n"
        "environment names other servers. Earlier runs of the workspace are there, too.\n\n"
        "For the commands prefect, mlflow and ray:  . runs/stack/env.sh",
    )
    _workspace(up)
    up.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="how many CPUs Ray gives to workers; default: those of this machine",
    )
    status = add_command(
        commands,
        "status",
        _status,
        "show what `gan-train up` has started, and whether it is healthy",
        "The exit status is 0 if all services are healthy, 1 if one is not, 3 if none was started.",
    )
    _workspace(status)
    down = add_command(
        commands, "down", _down, "end what `gan-train up` has started, and nothing else"
    )
    _workspace(down)
    down.add_argument(
        "--force",
        action="store_true",
        help="also while a run of the workspace is trained; --resume then goes on from its last "
        "checkpoint",
    )


def _workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workspace", type=Path, default=_WORKSPACE, metavar="FOLDER", help="default: %(default)s"
    )


def _say(line: str) -> None:
    print(f"gan-train: {line}", file=sys.stderr, flush=True)


def _up(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError
    from pipelines.stack.control import up
    from pipelines.stack.record import RAY, Stack

    stack = Stack.of(given.workspace)
    ray = stack.services.get(RAY)
    if given.cpus is not None and given.cpus < 1:
        raise UserError(f"--cpus {given.cpus}: allowed: 1 or more")
    if given.cpus is not None and ray is not None and ray.alive:
        raise UserError(
            f"--cpus {given.cpus}: Ray is up and keeps the CPUs that it has; `gan-train down` first"
        )
    if not up(stack, given.cpus or os.cpu_count() or 1, _say):
        _say("all services are up already")
    print(_addresses(stack))
    return 0


def _addresses(stack: Stack) -> str:
    """What there is to open, and how to log in."""
    from pipelines.stack.record import MLFLOW, PREFECT, RAY, USER

    services, folder = stack.services, stack.folder
    return "\n".join(
        [
            f"Prefect     {services[PREFECT].address}  log in with {USER}:PASSWORD",
            f"MLflow      {services[MLFLOW].address}  user {USER}",
            f"Ray         {services[RAY].address}  log in with the token in {folder / 'ray_token'}",
            f"password    in {folder / 'password'}",
            f"logs        {folder}/*.log",
            f"shell       . {folder / 'env.sh'}  for the commands prefect, mlflow and ray",
        ]
    )


def _status(given: argparse.Namespace) -> int:
    from pipelines.flows.progress import aligned
    from pipelines.stack.control import states
    from pipelines.stack.record import SERVICES, Stack

    stack = Stack.of(given.workspace)
    services, found = stack.services, states(stack)
    if not services:
        print(f"nothing was started in {given.workspace}; start it with `gan-train up`")
        return NOT_UP
    rows = [["service", "state", "address", "PID", "since"]]
    for name in SERVICES:
        if name not in services:
            rows.append([name, "not started", "-", "-", "-"])
            continue
        since = datetime.fromisoformat(services[name].since).astimezone()
        address = services[name].address or "-"
        rows.append(
            [name, found[name], address, str(services[name].pid), f"{since:%Y-%m-%d %H:%M}"]
        )
    print(aligned(rows))
    if all(found.get(name) == "healthy" for name in SERVICES):
        return 0
    print(f"logs: {stack.folder}/*.log; `gan-train up` starts what has ended")
    return UNHEALTHY


def _down(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError
    from gan_train.files.locks import is_locked
    from pipelines.stack.control import down
    from pipelines.stack.record import Stack

    locks = given.workspace.glob("train/*/.lock")
    trained = sorted(lock.parent.name for lock in locks if is_locked(lock))
    if trained and not given.force:
        raise UserError(
            f"{' and '.join(trained)}: trained or scored at present; stop that first, which saves "
            "a checkpoint, or interrupt it by --force"
        )
    if not down(Stack.of(given.workspace), _say):
        _say(f"nothing was started in {given.workspace}")
    return 0
