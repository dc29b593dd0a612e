"""Submits a training as a Ray job to a cluster that this process is not part of.

    ray job submit --submission-id RUN -- gan-train train RECIPE      # by hand
    gan-train run RECIPE --set cluster.jobs=http://head:8265          # from the flow

The flow itself stays in this process; `submission.py` submits a whole flow.
The workspace is a folder that the cluster and this process both see, and the run is followed
through its event log. A cluster takes each submission id only once, and the id depends on the run,
so a run is never trained by two jobs at once; whoever resumes a run whose job lives joins it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.runs import run_folder
from pipelines.compute import elastic, training
from pipelines.compute.cluster import QUIET, environment

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger(__name__)

POLL_S = 1.0
_LOG_TAIL = 3000  # characters
MARK = "gan_train"
"""The key in the metadata of every job that this project submits. Its value says what the job is:
`train`, a training whose flow runs elsewhere, or `run`, a whole flow."""


def connect(address: str, key: str = "cluster.jobs") -> JobSubmissionClient:
    """A client of a cluster's dashboard. Raises UserError, in which `key` names the setting that
    has the address, when nobody answers or the token is not right."""
    os.environ.update(environment(local="RAY_ADDRESS" not in os.environ))
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in (dashboard_sdk, sdk):  # they tell a terminal about each upload
        module.logger.setLevel(logging.WARNING)

    # the client would take the address in these variables instead of `address`
    aside = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    try:
        return JobSubmissionClient(address)
    except ConnectionError as error:
        raise UserError(
            f"{key}={address}: no Ray dashboard answers there; start the cluster with "
            "`ray start --head`, or run on this machine, without the address"
        ) from error
    except AuthenticationError as error:
        raise UserError(
            f"{key}={address}: the cluster asks for its token; put the one that it was started "
            "with into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    finally:
        os.environ.update({name: value for name, value in aside.items() if value is not None})


def submission_of(address: str, run_dir: Path) -> str:
    """The submission id of a run's job: of the one that lives, else of the run's next attempt.

    It depends on the run alone, and a cluster takes an id only once, so that of several who resume
    a run at once one submits it, and the others join.
    """
    told = [_told(job) for job in connect(address).list_jobs()]
    attempts = [job for job in told if job.run_dir == str(run_dir)]
    living = [job.id for job in attempts if not job.ended]
    place = hashlib.sha256(str(run_dir).encode()).hexdigest()[:8]
    return living[0] if living else f"{run_dir.name}-{place}-{len(attempts) + 1}"


class _Told(NamedTuple):
    """What a job says of itself."""

    id: str
    run_dir: str
    flow_run: str
    ended: bool


def _told(job: JobDetails) -> _Told:
    about = job.metadata or {}
    ended = job.status.is_terminal()
    return _Told(
        job.submission_id or "", about.get("run_dir", ""), about.get("flow_run", ""), ended
    )


def run(
    config: Config, shards: Path, run_dir: Path, submission: str, flow_run_id: str = ""
) -> training.Outcome:
    """Submit the training, unless it was submitted already, and wait for its end. So a flow that
    resumes a run whose job outlived the flow before joins that job.

    Raises UserError for a mistake that the workers found, RuntimeError with the end of the job's
    log when it failed.
    """
    assert config.cluster.jobs is not None
    client = connect(config.cluster.jobs)
    command = [sys.executable, "-m", "pipelines.compute.jobs", str(run_dir), str(shards)]
    about = {"run": run_dir.name, "run_dir": str(run_dir), "flow_run": flow_run_id}
    if _is_known(client, submission):
        log.warning("%s is trained by the Ray job %s: following it", run_dir.name, submission)
    else:
        try:
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=submission,
                metadata={MARK: "train", "recipe": config.name} | about,
                runtime_env={"env_vars": QUIET},
            )
        except RuntimeError:
            if not _is_known(client, submission):  # else another one was faster
                raise
    while not (status := client.get_job_status(submission)).is_terminal():
        time.sleep(POLL_S)
    refused = run_dir / training.REFUSED
    if refused.exists():
        raise UserError(refused.read_text(encoding="utf-8"))
    if status.value != "SUCCEEDED" and not (run_dir / training.STOP).exists():
        tail = client.get_job_logs(submission)[-_LOG_TAIL:]
        raise RuntimeError(f"Ray job {submission} ended as {status.value}:\n{tail}")
    return training.unchanged(run_dir)


def _is_known(client: JobSubmissionClient, submission: str) -> bool:
    return submission in {job.submission_id for job in client.list_jobs()}


def stop(address: str, flow_run_id: str, resumed: str | None = None) -> list[str]:
    """End the jobs that a flow run has submitted, and that of the run which it `resumed`, by name
    or folder; returns their ids."""
    client = connect(address)
    running = [
        job.id
        for job in map(_told, client.list_jobs())
        if job.run_dir and not job.ended
        if job.flow_run == flow_run_id
        or (resumed is not None and Path(job.run_dir).name == Path(resumed).name)
    ]
    for submission in running:
        client.stop_job(submission)
    return running


def main(arguments: list[str] | None = None) -> None:
    """The entrypoint of a submitted job: train the run's configuration on the job's own cluster."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.compute.jobs", description=main.__doc__
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("shards", type=Path)
    given = parser.parse_args(arguments)
    config = run_folder.configuration(given.run_dir)
    config = recipes.change(config, {"cluster.address": "auto", "cluster.jobs": None})
    try:
        elastic.fit(config, given.shards, given.run_dir)
    except UserError as error:  # `run` reads this where the job was submitted
        write_aside(given.run_dir / training.REFUSED, str(error).encode())
        sys.exit(f"gan-train: {error}")


if __name__ == "__main__":
    main()
