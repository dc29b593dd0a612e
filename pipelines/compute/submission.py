"""Submits a whole run (shard, train, score, register) as a Ray job, from a machine that is no part
of the cluster, and looks after such jobs.

    gan-train submit RECIPE --address http://head:8265 --set workspace=/shared/runs

The job gets one zip, which Ray unpacks as the job's working directory on every node: the
configuration, the code of this project as it is here, and the files that the configuration names
and that are only here. Nothing is installed on the cluster, and nothing of this machine's
environment travels: jobs are listed with their environment. With an image (`--image`) Ray takes no
zip: the image has the code, and the entrypoint holds the configuration. The reasons stand in
docs/decisions/0030-whole-runs-as-jobs.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gan_train
import pipelines
from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.compute.cluster import QUIET
from pipelines.compute.jobs import MARK, POLL_S

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

LIMIT = 99 * 1024**2
"""The most bytes that are sent. Ray's dashboard takes uploads of 100 MiB."""
_HEADERS = 256
"""The bytes that a zip needs for each file, at most, beside its content."""
STOP_WAIT_S = 60
"""Seconds that Ray gives a job between the request to end and its death. A run saves a checkpoint
in at most 25 s of them (`flows/running.py`), then tells Prefect and MLflow."""
RECIPE = "recipe.yaml"
SOURCE = "source.json"
"""The file beside the code that says which code it is (`registry/provenance.py`)."""


@dataclass(frozen=True)
class Package:
    """A run to submit: its configuration on the cluster, and the files that go with it."""

    config: Config
    files: Mapping[str, Path | bytes]
    """Contents by their names in the job's working directory, or where they are read."""
    image: str | None = None
    """The container image in which the job runs; then the recipe is all of `files`."""

    def id(self, *more: str) -> str:
        """A name for the job: the same recipe, code and files have the same, on any machine. `more`
        is what else makes a job another one."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            data = content if isinstance(content, bytes) else content.read_bytes()
            digest.update(json.dumps([name, hashlib.sha256(data).hexdigest()]).encode())
        digest.update(json.dumps([*more, *filter(None, [self.image])]).encode())
        return f"{self.config.name}-{digest.hexdigest()[:10]}"

    def write(self, path: Path) -> None:
        """Write the zip. The same contents give the same bytes, which Ray keeps once."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(self.files.items()):
                data = content if isinstance(content, bytes) else content.read_bytes()
                info = zipfile.ZipInfo(name)  # dated 1980
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)


def package(
    config: Config,
    tags: Mapping[str, str],
    *,
    code: bool = True,
    upload: bool = True,
    image: str | None = None,
) -> Package:
    """What is sent to the cluster for a run of `config`, whose paths are as the user gave them.

    Files and folders that exist here are sent; other absolute paths are taken as the cluster's, and
    so are all without `upload`. `tags` say which code is sent. With an `image` neither code nor
    files can be sent, and all paths are those in its containers.

    Raises UserError for a path that is neither here nor can be on the cluster, and for more than
    the upload's limit.
    """
    if not config.workspace.is_absolute():
        raise UserError(
            f"workspace={config.workspace}: a job needs a folder that every node of the cluster "
            "sees, by its absolute path: --set workspace=/shared/runs"
        )
    if image is not None:
        code = upload = False
    sent = {**(_code(tags) if code else {})}
    changes: dict[str, Any] = {"cluster.address": "auto", "cluster.jobs": None}
    places: dict[Path, str] = {}
    for key, place in local_paths(config).items() if upload else ():
        if place not in places:
            name = f"sent/{len(places)}"
            files = dict(_files(place, name))
            _check_size(key, place, [*sent.values(), *files.values()])
            places[place] = f"{name}/{place.name}" if place.is_file() else name
            sent |= files
        changes[key] = places[place]
    there = recipes.change(config, changes)
    return Package(there, sent | {RECIPE: recipes.dump(there).encode()}, image)


def local_paths(config: Config) -> dict[str, Path]:
    """The files and folders of this machine that a configuration names, by dotted key.

    Raises UserError for a relative path where nothing is.
    """
    given, absolute = recipes.paths(config), recipes.paths(recipes.with_absolute_paths(config))
    found = {}
    for key, path in absolute.items():
        if key == "workspace" or "://" in path:
            continue
        if Path(path).exists():
            found[key] = Path(path)
        elif not Path(given[key]).is_absolute():
            raise UserError(
                f"{key}={given[key]}: there is no {path}; a place that only the cluster sees is "
                "given by its absolute path"
            )
    return found


def _code(tags: Mapping[str, str]) -> dict[str, Path | bytes]:
    """This project's code, recipes and reference statistics, from a checkout or an installation."""
    rooms = {
        "gan_train": Path(gan_train.__file__).parent,
        "pipelines": Path(pipelines.__file__).parent,
        "configs": recipes.SHIPPED,
        "sample_data/statistics": recipes.SHIPPED.parent / "sample_data" / "statistics",
    }
    found: dict[str, Path | bytes] = {}
    for name, folder in rooms.items():
        found |= _files(folder, name)
    return found | {SOURCE: json.dumps(dict(tags), sort_keys=True).encode()}


def _files(place: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The files of a folder, or one file, and what they are called below `name`. Hidden files are
    left out, as they are where a source is read."""
    if place.is_file():
        yield f"{name}/{place.name}", place
        return
    for path in place.rglob("*"):
        parts = path.relative_to(place).parts
        if path.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in parts):
            yield "/".join((name, *parts)), path


def _check_size(key: str, place: Path, contents: Iterable[Path | bytes]) -> None:
    sizes = [len(c) if isinstance(c, bytes) else c.stat().st_size for c in contents]
    total = sum(sizes) + _HEADERS * len(sizes)
    if total > LIMIT:
        raise UserError(
            f"{key}={place}: with it the job's files would have {total / 1024**2:.0f} MiB, and Ray "
            f"takes no more than {LIMIT / 1024**2:.0f} MiB. Put it where every node of the cluster "
            f"sees it, and name that place: --set {key}=/shared/{place.name} --no-upload"
        )


# ---- jobs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job on the cluster, as people look at it."""

    id: str
    what: str
    """`run` or `train` (see `MARK`); empty for a job that this project did not submit."""
    recipe: str
    status: str
    message: str
    started: datetime | None
    took_s: float | None
    """Seconds until the end, or until now."""
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether the job is over, well or not."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @staticmethod
    def of(details: JobDetails) -> Job:
        """The job with these details."""
        metadata = details.metadata or {}
        started, ended = details.start_time, details.end_time  # milliseconds
        return Job(
            id=details.submission_id or details.job_id or "",
            what=metadata.get(MARK, ""),
            recipe=metadata.get("recipe", ""),
            status=details.status.value,
            message=details.message or "",
            started=datetime.fromtimestamp(started / 1000) if started else None,
            took_s=(ended or time.time() * 1000) / 1000 - started / 1000 if started else None,
            exit_code=details.driver_exit_code,
        )


def submit(
    client: JobSubmissionClient, package: Package, id: str, python: str, arguments: list[str]
) -> bool:
    """Submit the run under this id, unless the cluster has had a job of that id; returns whether it
    was submitted now.

    `python` is the cluster's interpreter, and `arguments` follow `gan-train run RECIPE`.
    """
    if state(client, id) is not None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            client.submit_job(
                entrypoint=entrypoint(package, python, arguments),
                submission_id=id,
                metadata={MARK: "run", "recipe": package.config.name},
                runtime_env=runtime_environment(package, Path(folder)),
            )
        except RuntimeError:
            if state(client, id) is not None:  # another one has submitted it meanwhile
                return False
            raise
    return True


def runtime_environment(package: Package, folder: Path) -> dict[str, Any]:
    """Ray's description of where the job runs: in the package's zip, which is written into
    `folder`, or in an image, beside which Ray takes only variables."""
    variables = QUIET | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if package.image is not None:
        return {"image_uri": package.image, "env_vars": variables}
    archive = folder / "job.zip"
    package.write(archive)
    return {"working_dir": str(archive), "env_vars": variables}


def entrypoint(package: Package, python: str, arguments: list[str]) -> str:
    """The shell command of the job. In an image it writes the recipe first, into a folder of its
    own: the user of the container may write nowhere else."""
    run, more = [python, "-m", "pipelines.cli.main", "run"], shlex.join(arguments)
    if package.image is None:
        return shlex.join([*run, RECIPE, *arguments])
    recipe = shlex.quote(recipes.dump(package.config))
    return (
        f'recipe="$(mktemp -d)/{RECIPE}" && printf %s {recipe} > "$recipe" && '
        f'exec {shlex.join(run)} "$recipe" {more}'
    )


def jobs(client: JobSubmissionClient, *, foreign: bool = False) -> list[Job]:
    """The jobs that this project has submitted to the cluster, the newest first; with `foreign`
    also all others that were submitted."""
    found = [Job.of(details) for details in client.list_jobs() if details.submission_id]
    chosen = [job for job in found if job.what or foreign]
    return sorted(chosen, key=lambda job: job.started or datetime.max, reverse=True)


def state(client: JobSubmissionClient, id: str) -> Job | None:
    """The job with this submission id; None if the cluster knows none."""
    return next((job for job in jobs(client, foreign=True) if job.id == id), None)


def find(client: JobSubmissionClient, id: str) -> Job:
    """The job with this submission id. Raises UserError if the cluster knows none."""
    job = state(client, id)
    if job is None:
        known = ", ".join(job.id for job in jobs(client)[:10]) or "none yet"
        raise UserError(f"{id}: the cluster has no such job; allowed: {known}")
    return job


def stop(client: JobSubmissionClient, id: str) -> Job:
    """Ask a run to save a checkpoint and end, and wait for its end.

    Raises UserError for a job that is not a whole run of this project: it is not ours to end.
    """
    job = find(client, id)
    if job.what != "run":
        whose = (
            "is the training of a flow on another machine; stop that flow (Ctrl-C there), which "
            "saves a checkpoint"
            if job.what
            else f"was not submitted by gan-train; whoever did ends it: ray job stop {id}"
        )
        raise UserError(f"{id}: {whose}")
    if not job.ended:
        client.stop_job(id)
    while not (job := find(client, id)).ended:
        time.sleep(POLL_S)
    return job


def follow(client: JobSubmissionClient, id: str, show: Callable[[str], None]) -> Job:
    """Hand the job's log to `show` from its beginning until the job ends; returns how it ended."""

    async def tail() -> None:
        lines: AsyncIterator[str] = client.tail_job_logs(id)
        async for text in lines:
            show(text)

    asyncio.run(tail())
    while not (job := find(client, id)).ended:  # the log ends a moment before the job does
        time.sleep(POLL_S)
    return job
