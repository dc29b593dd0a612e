"""`gan-train submit`, `jobs`, `logs`, `attach` and `stop`: whole runs as jobs of a Ray cluster.

This file reads arguments and prints; `pipelines/compute/submission.py` does the work.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import (
    add_command,
    add_minutes,
    add_overrides,
    check_minutes,
    chosen,
)
from pipelines.cli.ending import STOPPED

if TYPE_CHECKING:
    from gan_train.config import Config
    from pipelines.compute.submission import Job

FAILED = 1
_ADDRESS = "http://127.0.0.1:8265"
_WORKSPACE = Path("runs")
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_AUTH_STRING")


def add(commands: Any) -> None:
    """Add the commands to a parser's list."""
    submit = add_command(
        commands,
        "submit",
        _submit,
        "run a recipe as a job of a Ray cluster: shard, train, score, register",
        "  gan-train submit demo --address http://head:8265 --set workspace=/shared/runs\n"
        "  gan-train submit demo --set workspace=/shared/runs --set cluster.workers=8 --detach\n"
        "  gan-train submit demo                       to the Ray of `gan-train up`\n\n"
        "The job gets the resolved configuration, the code as it is here, and the files that the\n"
        "configuration names and that are only here, up to 99 MiB. The cluster needs the packages\n"
        "that the code needs, and a folder that all its nodes see: the workspace. Its token is\n"
        "taken from RAY_AUTH_TOKEN or ~/.ray/auth_token. Nothing else of this machine's\n"
        "environment is sent: passwords of MLflow and Prefect belong into the cluster's own.\n\n"
        "--minutes is handed on to the job, which takes some steps on the cluster's head first to\n"
        "see what they cost: the head needs a processor or a GPU as the workers have it.\n\n"
        "--image is Ray's `image_uri`: driver, workers and sharding run in containers of an image\n"
        "that has Python, gan-train and Ray in the cluster's versions. All nodes need podman, and\n"
        "access to the image; code and files do not travel, the configuration does. A container\n"
        "sees of its node only Ray's folder and variables named RAY_*: the rest, such as GPUs, a\n"
        "shared folder and credentials, is given by podman's containers.conf of each node\n"
        "(devices, volumes, env_host). Nobody has run this yet.\n\n"
        "The same recipe, code and files have the same id, and an id is trained once: submitting\n"
        "again follows the job that is there. Ctrl-C leaves the job running.",
    )
    submit.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    _address(submit)
    submit.add_argument("--id", help="the name of the job; default: by recipe, code and files")
    add_minutes(submit)
    submit.add_argument("--resume", metavar="RUN", help="go on with this run of the workspace")
    submit.add_argument("--detach", action="store_true", help="do not wait for the job's end")
    submit.add_argument(
        "--no-code",
        action="store_true",
        help="send no code: the cluster has gan-train installed, in an image for instance",
    )
    submit.add_argument(
        "--image",
        metavar="URI",
        help="run the job in containers of this image, which has the code; needs podman on all "
        "nodes; never tried, see below",
    )
    submit.add_argument(
        "--no-upload", action="store_true", help="send no files: all paths are the cluster's"
    )
    submit.add_argument(
        "--python",
        default="python",
        metavar="PATH",
        help="the interpreter on the cluster's head; default: %(default)s",
    )
    add_overrides(submit)

    jobs = add_command(
        commands,
        "jobs",
        _jobs,
        "list the jobs that gan-train has submitted to a cluster, or show one",
    )
    jobs.add_argument("id", nargs="?", help="show this one")
    jobs.add_argument("--all", action="store_true", help="also jobs that others have submitted")
    _address(jobs)
    _workspace(jobs)

    logs = add_command(commands, "logs", _logs, "print the log of a job")
    logs.add_argument("id")
    logs.add_argument("-f", "--follow", action="store_true", help="until the job ends")
    _address(logs)
    _workspace(logs)

    attach = add_command(
        commands,
        "attach",
        _attach,
        "follow a job's log to its end, and end with the job's status",
        "Ctrl-C leaves the job running.",
    )
    attach.add_argument("id")
    _address(attach)
    _workspace(attach)

    stop = add_command(
        commands,
        "stop",
        _stop,
        "end a job that gan-train has submitted: its run saves a checkpoint first",
    )
    stop.add_argument("id")
    _address(stop)
    _workspace(stop)


def _address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help=f"the cluster's dashboard; default: {', '.join(_VARIABLES)}, that of `gan-train up`, "
        f"or {_ADDRESS}",
    )


def _workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workspace",
        type=Path,
        default=_WORKSPACE,
        metavar="FOLDER",
        help="that of `gan-train up`, if its Ray is meant; default: %(default)s",
    )


def address_of(given: str | None, workspace: Path) -> str:
    """The address of the dashboard: as given, or of the environment, or the one that `gan-train up`
    has started for the workspace, or the usual one of this machine.

    Raises UserError for one that is not http or https.
    """
    from gan_train.errors import UserError
    from pipelines.stack import discovery

    if given is not None and not given.startswith(("http://", "https://")):
        raise UserError(f"--address {given}: allowed: a dashboard's address, such as {_ADDRESS}")
    set_here = (os.environ.get(name, "") for name in _VARIABLES)
    # RAY_ADDRESS may also be the address of the cluster itself, host:port
    named = given or next((value for value in set_here if value.startswith("http")), None)
    return discovery.dashboard(workspace, named) or named or _ADDRESS


def _client(given: argparse.Namespace) -> Any:
    from pipelines.compute.jobs import connect

    return connect(address_of(given.address, given.workspace), "--address")


# ---- commands ----------------------------------------------------------------------------------


def _submit(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from gan_train.errors import UserError
    from pipelines.compute import submission
    from pipelines.compute.jobs import connect
    from pipelines.registry.provenance import source_tags
    from pipelines.stack import discovery

    check_minutes(given)
    config = recipes.load(given.recipe, given.overrides)
    address = address_of(given.address, config.workspace)
    ours = address == discovery.dashboard(config.workspace, address)
    if ours:  # the job runs on this machine
        config = recipes.change(config, {"workspace": str(config.workspace.absolute())})
    package = submission.package(
        config,
        source_tags(),
        code=not given.no_code,
        upload=not given.no_upload,
        image=given.image,
    )
    _precheck(config, given)
    arguments = arguments_of_run(given, config)
    id = given.id or package.id(*arguments)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", id):
        raise UserError(f"--id {id}: allowed: letters, digits, dots, dashes and underscores")
    if given.image is not None and config.store is None:
        _say(
            f"workspace={config.workspace}: podman's containers.conf of every node must mount this "
            "folder, or the run is lost with its container; a workspace in a bucket needs no mount"
        )
    for name in () if ours else filter(os.environ.get, _SECRETS):
        _say(f"{name} is not sent; the cluster's own environment must have it")

    client = connect(address, "--address")
    if submission.submit(client, package, id, given.python, arguments):
        _say(f"submitted {id}")
    else:
        job = submission.find(client, id)
        if job.status == "SUCCEEDED":
            _say(f"{id} is finished, since {_when(job)}; to train it again: --id NAME")
            return 0
        if job.ended:
            raise UserError(
                f"{id}: was submitted before and is {job.status.lower()}. See why: gan-train logs "
                f"{id}. Go on with its run: --resume RUN; try again: --id NAME"
            )
        _say(f"{id} was submitted before")
    if given.detach:
        _say(f"follow it: gan-train attach {id}")
        return 0
    return _followed(client, id)


def arguments_of_run(given: argparse.Namespace, config: Config) -> list[str]:
    """What of the arguments the job is told beside its configuration: to fit the schedule to
    --minutes or to go on with a run, and with either which lengths were chosen and thus stay."""
    from gan_train import recipes

    found = ["--resume", given.resume] if given.resume else []
    found += [] if given.minutes is None else ["--minutes", str(given.minutes)]
    for key, override in zip(chosen(given), given.overrides, strict=True) if found else ():
        # paths are others on the cluster
        if key.startswith(("family.", "train.")) and key not in recipes.paths(config):
            found += ["--set", override]
    return found


def _precheck(config: Config, given: argparse.Namespace) -> None:
    """Check the configuration against the images, if they are on this machine. What is found out
    of them is not kept: the workspace is the cluster's."""
    from gan_train import recipes
    from pipelines.compute.submission import local_paths
    from pipelines.flows import plan

    wanted = {key for key in recipes.paths(config) if key in recipes.SOURCES}
    if given.no_upload or given.image is not None or not wanted <= local_paths(config).keys():
        _say("the images are on the cluster: the job checks whether they fit the configuration")
        return
    with tempfile.TemporaryDirectory() as folder:
        here = recipes.change(recipes.with_absolute_paths(config), {"workspace": folder})
        plan.precheck(here)


def _followed(client: Any, id: str) -> int:
    """Print the job's log until it ends; returns the exit status that says how it ended."""
    from pipelines.compute import submission

    try:
        job = submission.follow(client, id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _say(
            f"detached; the job goes on. Follow it: gan-train attach {id}. End it: gan-train stop "
            f"{id}"
        )
        return STOPPED
    _say(f"{id} is {job.status.lower()}")
    return exit_status(job)


def exit_status(job: Job) -> int:
    """The status with which to end for a job that has ended: its own, if it failed."""
    if job.status == "FAILED":
        return job.exit_code or FAILED
    return 0 if job.status == "SUCCEEDED" else STOPPED


def _jobs(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError
    from pipelines.compute import submission
    from pipelines.flows.progress import aligned

    client = _client(given)
    if given.id is not None:
        job = submission.find(client, given.id)
        for name, text in zip(_HEAD, _row(job), strict=True):
            print(f"{name:<11} {text}")
        print(f"{'message':<11} {job.message}")
        return 0
    found = submission.jobs(client, foreign=given.all)
    if not found:
        raise UserError(
            f"{address_of(given.address, given.workspace)} has no job of gan-train; submit one "
            "with `gan-train submit`, or see all with --all"
        )
    print(aligned([_HEAD, *map(_row, found)]))
    return 0


_HEAD = ["id", "recipe", "what", "status", "started", "took"]


def _row(job: Job) -> list[str]:
    took = "-" if job.took_s is None else str(timedelta(seconds=round(job.took_s)))
    return [job.id, job.recipe or "-", job.what or "-", job.status.lower(), _when(job), took]


def _when(job: Job) -> str:
    return f"{job.started:%Y-%m-%d %H:%M}" if job.started else "-"


def _logs(given: argparse.Namespace) -> int:
    from pipelines.compute import submission

    client = _client(given)
    submission.find(client, given.id)
    if given.follow:
        _followed(client, given.id)
    else:
        print(client.get_job_logs(given.id), end="")
    return 0


def _attach(given: argparse.Namespace) -> int:
    from pipelines.compute import submission

    client = _client(given)
    submission.find(client, given.id)
    return _followed(client, given.id)


def _stop(given: argparse.Namespace) -> int:
    from pipelines.compute import submission

    client = _client(given)
    before = submission.find(client, given.id)
    if before.ended:
        _say(f"{given.id} is {before.status.lower()} already")
        return 0
    job = submission.stop(client, given.id)
    _say(f"{given.id} is {job.status.lower()}")
    resumable = re.findall(r"--resume (\S+)", client.get_job_logs(given.id))
    if resumable:
        _say(
            f"go on later: gan-train submit RECIPE --resume {resumable[-1]}, with the same recipe, "
            "settings and address"
        )
    return 0


def _say(text: str) -> None:
    print(f"gan-train: {text}", file=sys.stderr, flush=True)
