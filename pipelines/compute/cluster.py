"""Starts and ends Ray: a private local instance by default, or a connection to a cluster.

Ray reads its environment when it is first imported, so this file sets it first, and imports Ray
only inside functions. Code that needs Ray enters `connected` first.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from gan_train.errors import UserError
from pipelines.compute import autoscaler, own_ray

if TYPE_CHECKING:
    from gan_train.config import ClusterConfig, Config

log = logging.getLogger(__name__)

HERE = "GAN_TRAIN_RAY_HERE"
"""The environment variable with the address of the cluster that `gan-train up` has started on this
machine, where this process uses it."""
THREAD = "in Ray: "
"""How the names of threads begin with which the interpreter cannot end in good order: they wait in
Ray's code for a training to end, or import."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # what asks Ray for something after its end must not start another one, or join any
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # set on every side: without it `ray job submit` sends no token
    "RAY_AUTH_MODE": "token",
    # After a failure the workers that are left are given so many seconds to end in good order: one
    # that is stopped, or waits for a lost one, takes all of them. Ray's default is 30.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # A node is lost after five checks without an answer. Ray's default of 3 s between them means
    # 15 s in which new workers are sent to a node that is no longer there. One that is there, but
    # slow, is given 10 s for each answer.
    "RAY_health_check_period_ms": "600",
}
LOOPBACK = {
    # The only node has nobody who would go on elsewhere. The driver sees by itself that it is gone
    # (`check_alive`), and once Ray says so, too, Ray ends the driver: that must not come first.
    "RAY_health_check_period_ms": "3000",
    # makes Ray run on one node; its GCS, raylet, agents and workers then listen on 127.0.0.1 only
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    # Nobody reads the metrics of a private instance, and no cloud takes this machine away. Each
    # helper process that would serve these ends wakes some 150 times a second, which slows the
    # workers down where they use all cores.
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray Train's controller runs in the command's own process, whose logs are none of its business.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    # Ray notices the start and the end of a training after 0.5 s, not after the default of 2 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ray would start a process for each core at once. Those that train, and their controller, have
    # environments of their own, for which it starts others.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's log monitor sends what workers print to the driver, which does not ask for it
    # (`log_to_driver`). It lists the logs ten times a second, unless there are many: then it waits.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",
}
TRAINING = {
    # Ray gives its workers the niceness 15 (`nice`), so that all its own processes, and all other
    # programs, come before them. Those that train come before Ray's own actors, which keep it.
    "RAY_worker_niceness": "0",
}


COMES_S = 30.0
"""Seconds without a sign of new nodes after which a cluster is as large as it gets. An autoscaler
looks every 5 s for what is asked of it."""
SAY_S = 60.0
"""Seconds between two lines that say what a training waits for."""


class RayEnded(UserError):
    """The Ray of this machine has ended, and with it the workers."""


def environment(local: bool) -> dict[str, str]:
    """The environment variables that Ray needs here; those that the user has set stay."""
    return _unless_set(QUIET | (LOOPBACK if local else {}))


def environment_of_workers(local: bool) -> dict[str, str]:
    """The environment variables of the workers that train; those that the user has set stay."""
    return environment(local) | _unless_set(TRAINING if local else {})


def _unless_set(wanted: dict[str, str]) -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def address_of(cluster: ClusterConfig) -> str | None:
    """The address of the cluster to join, or None to start Ray here. In a Ray job, RAY_ADDRESS
    names the cluster."""
    return cluster.address or os.environ.get("RAY_ADDRESS") or None


def on_this_machine(cluster: ClusterConfig) -> bool:
    """Whether all workers are processes of this machine, which talk over loopback: Ray is started
    here by this command, or was started here by `gan-train up`."""
    return address_of(cluster) in (None, os.environ.get(HERE))


def threads_per_worker(config: Config, cores: int) -> int:
    """The number of CPU threads of one worker: `train.threads`, else its share of `cores`."""
    if config.train.threads is not None:
        return config.train.threads
    share = cores // config.cluster.workers if on_this_machine(config.cluster) else 0
    return max(1, share, int(config.cluster.cpus_per_worker))


def close_token() -> None:
    """Keep other users from the token of the Ray that is started here. Where the environment gives
    none, Ray makes one, in a file of this folder that everyone may read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    folder = Path.home() / ".ray"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)


def begun(cluster: ClusterConfig) -> AbstractContextManager[None]:
    """`connected`, where it would start Ray on this machine and workers will train there, to enter
    it while another thread imports; else a block without effect. Ray is imported before it returns:
    what two threads import at once may never end."""
    if cluster.jobs is not None or address_of(cluster) is not None:
        return nullcontext()
    os.environ.update(environment(local=True))
    import ray  # noqa: F401

    return connected(cluster)


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to Ray for the time of the block. A local instance ends with the block, and nested
    entries reuse it.

    Where the cluster is too small for the workers, its autoscaler is asked for nodes, and the block
    begins when they are there. Raises UserError when the cluster does not answer, or is too small
    and does not grow.
    """
    address = address_of(cluster)
    here = on_this_machine(cluster)
    os.environ.update(environment(here))
    import ray
    from ray._private import worker

    if ray.is_initialized():
        if not here:
            _grow(cluster)  # nodes that were idle for a while may have gone
        yield
        return
    # Ray prints here, on stdout, that a process of it has died, and pages of that one's log
    worker.print_to_stdstream = _hear_ray
    wanted = math.ceil(cluster.workers * cluster.cpus_per_worker)
    try:
        _start(address, wanted)
        if not here:
            _grow(cluster)
        cpus = int(resources().get("CPU", 0))
        if cpus < wanted:
            raise UserError(
                f"cluster.workers={cluster.workers}: the cluster has {cpus} CPUs and {wanted} are "
                f"needed (cluster.cpus_per_worker={cluster.cpus_per_worker:g})"
                + (
                    f"; for more CPUs, `gan-train down` and `gan-train up --cpus {wanted}`"
                    if address and here
                    else ""
                )
            )
        yield
    finally:
        ray.shutdown()


def _start(address: str | None, wanted: int) -> None:
    """Join the cluster at the address; without one start Ray here, with so many CPUs at least."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _signals_kept():
            if address is None:
                # these CPUs are logical: more workers than cores is slow, not wrong
                cpus = max(os.cpu_count() or 1, wanted)
                close_token()
                with own_ray.lean():
                    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            else:
                ray.init(address=address, **options)
    except ConnectionError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error}). Start one "
            "with `ray start --head`, or leave the key empty to train locally"
        ) from error


def _grow(cluster: ClusterConfig) -> None:
    """Where the cluster's nodes are too few for the workers, ask for more; returns once they are
    there, or when none is about to come."""
    gpu = cluster.gpu == "yes"

    def room() -> int:
        return holds(cluster, gpu, nodes())

    if room() >= cluster.workers or autoscaler.is_absent():
        return
    there, sign, said = len(nodes()), time.monotonic(), -SAY_S
    with autoscaler.asked(needs(cluster, gpu), cluster.workers, cluster.placement):
        while room() < cluster.workers and (now := time.monotonic()) < sign + COMES_S:
            if autoscaler.starts_nodes() or len(nodes()) > there:
                there, sign = len(nodes()), now
                if now > said + SAY_S:
                    said = now
                    log.warning(
                        "the cluster has room for %d of %d workers; waiting for the nodes that its "
                        "autoscaler starts",
                        *(room(), cluster.workers),
                    )
            time.sleep(0.5)


def _hear_ray(data: Any, ignore_prefix: bool) -> None:
    log.debug("Ray: %s", data["lines"])


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Start Ray in this block, and the signals act afterwards as they did before.

    Ray's processes inherit that SIGINT and SIGHUP are blocked: Ctrl-C and a terminal that closes
    send these to all that was started there, and the workers shall save a checkpoint first. For
    this process they come at the end of the block, and so does a SIGTERM, which Ray takes for
    itself, even where this process has a use for it. A second SIGTERM ends this process at once.
    """
    from ray._private import utils

    main = threading.current_thread() is threading.main_thread()
    come: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        come.append(number)

    terminate = signal.getsignal(signal.SIGTERM)
    if main:
        signal.signal(signal.SIGTERM, keep)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        with patch.object(utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, terminate)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in come:
            signal.raise_signal(number)


def check_alive(remedy: str, ask: bool = False) -> None:
    """Raise RayEnded, which ends with `remedy`, when Ray has ended on this machine, whether this
    process has started it or joined it. With `ask` also when this machine is no longer part of the
    cluster that it has joined, as the head node knows."""
    import ray
    from ray._private.worker import global_worker  # only there Ray tells of its own processes

    if not ray.is_initialized():
        return
    node = global_worker.node
    assert node is not None
    if node.all_processes:
        alive = not {"raylet", "gcs_server"} & {kind for kind, _ in node.dead_processes()}
    else:
        alive = _listens(node.raylet_socket_name)
        if alive and ask:
            here = ray.get_runtime_context().get_node_id()
            alive = any(n["Alive"] and n["NodeID"] == here for n in ray.nodes())
    if not alive:
        raise RayEnded(
            "Ray has ended on this machine: someone has killed it, or memory ran out. Its log is "
            f"in {node.get_logs_dir_path()}; {remedy}"
        )


def leave() -> None:
    """Leave a Ray that has ended. Ray's library ends this process without a word once it misses the
    raylet: a few seconds later, while the process may still have much to tell others."""
    import ray

    ray.shutdown()


def _listens(address: str) -> bool:
    """Whether the process lives that listened on the Unix socket when this was first asked."""
    try:
        listener = _listener(address)
    except OSError:  # nobody listens any more
        return False
    if listener is None:
        return True
    ended = select.poll()
    ended.register(listener, select.POLLIN)
    return not ended.poll(0)


@cache
def _listener(address: str) -> int | None:
    """A file descriptor of the process that listens on the Unix socket, which tells its end; None
    where that process belongs to another container. Raises OSError when nobody listens."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        peer = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", peer)
    return os.pidfd_open(pid) if pid else None


def identifiers() -> dict[str, str]:
    """The id of this process's Ray job and, if the job was submitted, its submission id."""
    import ray

    if not ray.is_initialized():
        return {}
    ids = {"ray.job_id": ray.get_runtime_context().get_job_id()}
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission = job.get("metadata", {}).get("job_submission_id")
    return ids | ({"ray.submission_id": submission} if submission else {})


def resources() -> dict[str, float]:
    """The cluster's resources by name, such as `CPU` and `GPU`; call this inside `connected`."""
    import ray

    ask: Callable[[], dict[str, float]] = ray.cluster_resources
    return ask()


def unused() -> list[dict[str, float]]:
    """What nobody uses now of each node's resources; call this inside `connected`."""
    from ray._private.state import available_resources_per_node  # Ray's API for developers

    ask: Callable[[], dict[str, dict[str, float]]] = available_resources_per_node
    return list(ask().values())


def nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive, used or not; call this inside `connected`."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def needs(cluster: ClusterConfig, gpu: bool) -> dict[str, float]:
    """The resources that Ray reserves for each worker."""
    kind = {accelerator(cluster.accelerator_type): 0.001} if cluster.accelerator_type else {}
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if gpu else {}) | kind


def holds(cluster: ClusterConfig, gpu: bool, there: list[dict[str, float]]) -> int:
    """How many workers there is room for in such resources of each node."""
    each = needs(cluster, gpu)

    def fits(node: dict[str, float]) -> int:
        return int(min(node.get(name, 0.0) // need for name, need in each.items()))

    return sum(map(fits, there))


def accelerator(kind: str) -> str:
    """Ray's name of the resource that every node with accelerators of this type has once."""
    return f"accelerator_type:{kind}"


def places(cluster: ClusterConfig) -> list[dict[str, float]]:
    """The nodes on which workers may stand: those of the accelerator type asked for.

    Raises UserError when there is none.
    """
    kind, found = cluster.accelerator_type, nodes()
    if kind is None:
        return found
    right = [node for node in found if accelerator(kind) in node]
    if not right:
        begin = accelerator("")
        there = sorted({k.removeprefix(begin) for n in found for k in n if k.startswith(begin)})
        raise UserError(
            f"cluster.accelerator_type={kind}: no node of the cluster has it; there are: "
            f"{', '.join(there) or 'none of any type'}. Leave the key empty to take any"
        )
    return right


def gpus_wanted(cluster: ClusterConfig) -> bool:
    """Whether every worker gets a GPU; call it inside `connected`.

    Raises UserError when `cluster.gpu` is `yes` and there are fewer GPUs than workers, and when no
    node has the accelerator type asked for.
    """
    found = int(sum(node.get("GPU", 0) for node in places(cluster)))
    if cluster.gpu == "yes" and found < cluster.workers:
        raise UserError(
            f"cluster.gpu=yes: {cluster.workers} workers need a GPU each and Ray sees {found}; "
            "lower cluster.workers, or use auto or no"
        )
    if cluster.gpu == "auto" and 0 < found < cluster.workers:
        log.warning(
            "%d workers and %d GPUs: they train on CPUs; cluster.workers=%d would take the GPUs",
            *(cluster.workers, found, found),
        )
    return cluster.gpu != "no" and found >= cluster.workers
