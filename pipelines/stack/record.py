"""What is written of a workspace's stack: its services, their processes and addresses, its secrets.

All of it lies in the folder `<workspace>/stack`, which only its owner may enter:

    stack.json       the services that `gan-train up` has started
    password         of the user `admin`, for Prefect and MLflow
    ray_token        for Ray and its dashboard
    env.sh           sets what the commands `prefect`, `mlflow` and `ray` need to find the stack
    <service>.log    what a service prints

Secrets stay from one start to the next, as the browsers that know them do.
"""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from gan_train.files.atomic import read_json, write_json
from pipelines.compute.cluster import HERE
from pipelines.stack.processes import is_marked

PREFECT, WORKER, MLFLOW, RAY = SERVICES = ("prefect", "worker", "mlflow", "ray")
USER = "admin"


@dataclass(frozen=True)
class Service:
    """A service that was started: its first process, and where it answers."""

    pid: int
    mark: str
    """The random text that its processes have in their environment."""
    since: str
    """The time of its start, ISO 8601."""
    address: str
    """What a browser opens; empty where there is nothing to open."""
    port: int = 0
    """The port that programs connect to; 0 where there is none."""
    temporary: str = ""
    """A folder outside the workspace that ends with the service; empty where there is none."""

    @property
    def alive(self) -> bool:
        """Whether its first process runs; it may be ill, or not ready yet."""
        return is_marked(self.pid, self.mark)


@dataclass(frozen=True)
class Stack:
    """The folder of a workspace's stack, which need not exist."""

    folder: Path

    @classmethod
    def of(cls, workspace: Path) -> Self:
        """The stack of a workspace."""
        return cls(workspace.absolute() / "stack")

    def make(self) -> None:
        """Make the folder, which nobody but its owner may enter."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    @property
    def services(self) -> dict[str, Service]:
        """The services that were started and not yet ended, dead or alive, by name; none where this
        user may not enter the folder."""
        try:
            return {name: Service(**kept) for name, kept in read_json(self._record).items()}
        except (FileNotFoundError, PermissionError):
            return {}

    def keep(self, services: dict[str, Service]) -> None:
        """Write down which services there are."""
        if services:
            write_json(self._record, {name: asdict(kept) for name, kept in services.items()})
        else:
            self._record.unlink(missing_ok=True)

    @property
    def _record(self) -> Path:
        return self.folder / "stack.json"

    def log(self, name: str) -> Path:
        """The file with what a service has printed."""
        return self.folder / f"{name}.log"

    # ---- secrets ----

    def secret(self, name: str) -> str:
        """The secret in the file `name`, which is made when it is missing."""
        self.private(name, secrets.token_urlsafe(24), replace=False)
        return (self.folder / name).read_text(encoding="ascii").strip()

    @property
    def password(self) -> str:
        """The password of Prefect and MLflow."""
        return self.secret("password")

    @property
    def ray_token(self) -> str:
        """The token of Ray."""
        return self.secret("ray_token")

    def private(self, name: str, text: str, replace: bool = True) -> Path:
        """Write a file that nobody else may read, unless it is there and is not to be replaced."""
        path = self.folder / name
        if replace:
            path.unlink(missing_ok=True)
        elif path.exists():
            return path
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
        return path

    # ---- how clients find the services ----

    def environment(self, name: str) -> dict[str, str]:
        """The environment variables by which programs find a service that was started."""
        port = self.services[name].port
        if name == PREFECT:
            return {
                "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
                "PREFECT_API_AUTH_STRING": f"{USER}:{self.password}",
                "PREFECT_HOME": str(self.folder.parent / "prefect"),
            }
        if name == MLFLOW:
            return {
                "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
                "MLFLOW_TRACKING_USERNAME": USER,
                "MLFLOW_TRACKING_PASSWORD": self.password,
            }
        if name == RAY:
            return {
                "RAY_ADDRESS": f"127.0.0.1:{port}",
                "RAY_API_SERVER_ADDRESS": self.services[name].address,  # for jobs
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": self.ray_token,
                # programs of another network address than 127.0.0.1 are no part of this cluster
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                HERE: f"127.0.0.1:{port}",
            }
        return {}

    def write_environment(self) -> None:
        """Write `env.sh`, by which a shell and its commands find all services."""
        found = [pair for name in self.services for pair in self.environment(name).items()]
        self.private("env.sh", "\n".join(f"export {k}={shlex.quote(v)}" for k, v in found))
