"""Ray nodes for tests, with addresses of their own where the machine allows it.

As root on Linux, every node is in a network namespace of its own, and a bridge joins them, as a
switch joins machines. Elsewhere all are on loopback. Each has a folder of its own for copies of
what is in a bucket, so no two of them see one folder of a run. The cables have the rate, and where
the kernel can do it the delay, of a modest network between machines.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType

from pipelines.compute.cluster import LOOPBACK, QUIET

STARTUP_S = 180.0
RATE, DELAY = "200mbit", "5ms"
"""Of each node's cable, in either direction."""
_RAY = str(Path(sys.executable).with_name("ray"))
_PORT, _BOARD = "6390", "6391"


def _does(*command: str) -> bool:
    """Whether a command did what it was asked for."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _ip(*arguments: str) -> bool:
    """Whether `ip` did what it was asked for."""
    return _does("ip", *arguments)


def apart() -> bool:
    """Whether nodes get addresses of their own here."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None


@cache
def limits() -> dict[str, list[str]]:
    """What of a network's limits the kernel can give a cable: in words, and as arguments after `tc
    qdisc add dev CABLE`. Tried out in a network that nobody else sees."""
    both = ["root", "netem", "delay", DELAY, "rate", RATE, "limit", "10000"]
    rate = ["root", "tbf", "rate", RATE, "burst", "256kb", "latency", "200ms"]
    trial = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo"]
    if not (apart() and shutil.which("tc")):
        return {}
    if _does(*trial, *both):
        return {f"{RATE}, {DELAY}": both}
    return {f"{RATE}, no delay (the kernel has no netem)": rate} if _does(*trial, *rate) else {}


def network() -> str:
    """What joins the nodes of the tests on this machine, in words."""
    if not apart():
        return "loopback alone: addresses of their own need root and `ip`"
    return ", ".join(["a cable each", *(limits() or ["no limits (they need `tc`)"])])


@dataclass
class Node:
    """A node: its address, what to write before a command that runs on it, and its processes."""

    name: str
    address: str
    before: list[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)


class Nodes:
    """A head without CPUs, and nodes of one CPU each; use it as a context manager.

    `environment` is added to that of all processes on the nodes. `outside` is the address at which
    processes that run on no node can listen for them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bridge = f"gt{os.urandom(2).hex()}"
        self._net = f"10.{secrets.randbelow(256)}.77"
        self._nodes: list[Node] = []
        self._sessions = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
        self.environment = {"RAY_AUTH_TOKEN": secrets.token_urlsafe(32)}
        self.apart = apart() and _ip("link", "add", self._bridge, "type", "bridge")
        self.outside = f"{self._net}.254" if self.apart else "127.0.0.1"
        if self.apart:
            assert _ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
            assert _ip("link", "set", self._bridge, "up")

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node in reversed(self._nodes):
            self.kill(node)
        if self.apart:
            _ip("link", "del", self._bridge)
        shutil.rmtree(self._sessions, ignore_errors=True)

    def _new(self, name: str) -> Node:
        number = len(self._nodes) + 1
        node = Node(name, "127.0.0.1", [])
        if self.apart:
            space, cable = f"{self._bridge}n{number}", f"{self._bridge}c{number}"
            node = Node(name, f"{self._net}.{number}", ["ip", "netns", "exec", space])
            made = (
                _ip("netns", "add", space)
                and _ip("link", "add", cable, "type", "veth", "peer", "eth0", "netns", space)
                and _ip("link", "set", cable, "master", self._bridge, "up")
                and _ip("-n", space, "addr", "add", f"{node.address}/24", "dev", "eth0")
                and _ip("-n", space, "link", "set", "eth0", "up")
                and _ip("-n", space, "link", "set", "lo", "up")
            )
            assert made, "no network for the node"
            for limit in limits().values():
                add = ["tc", "qdisc", "add", "dev"]
                assert _does(*add, cable, *limit) and _does(*node.before, *add, "eth0", *limit)
        self._nodes.append(node)
        return node

    def _variables(self, node: Node) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            # a Ray that another test has started in this process was for one machine alone
            if not key.startswith("COV") and key not in LOOPBACK
        }
        return (
            kept
            | QUIET
            | {
                "RAY_raylet_start_wait_time_s": "180",
                "GLOO_SOCKET_IFNAME": "eth0" if self.apart else "lo",
                "GAN_TRAIN_CACHE": str(self.copies(node.name)),
            }
            | self.environment
        )

    def copies(self, name: str) -> Path:
        """The folder in which a node keeps its copies."""
        return self._folder / name

    def start(self, name: str) -> Node:
        """Start a node: the first is the head, and all others have one CPU. A SIGTERM to the first
        of its processes has Ray end it in an orderly way."""
        node = self._new(name)
        head = self._nodes[0]
        # in a folder that they share, each would unpack a job's files anew, below the others' feet
        session = Path(self._sessions) / str(len(self._nodes))
        role = ["--address", f"{head.address}:{_PORT}", "--num-cpus", "1"]
        if node is head:
            role = ["--head", "--port", _PORT, "--num-cpus", "0"]
            role += ["--dashboard-host", head.address, "--dashboard-port", _BOARD]
        with (self._folder / f"{name}.log").open("wb") as log:
            ray = [*node.before, _RAY, "start", "--block", "--node-ip-address", node.address]
            ray += ["--temp-dir", str(session)]
            node.processes.append(
                subprocess.Popen(
                    [*ray, *role],
                    stdout=log,
                    stderr=log,
                    env=self._variables(node),
                    start_new_session=True,
                )
            )
        self._wait_for(node)
        return node

    @property
    def newest(self) -> Node:
        """The node that was started last."""
        return self._nodes[-1]

    @property
    def address(self) -> str:
        """The address of the cluster."""
        return f"{self._nodes[0].address}:{_PORT}"

    @property
    def dashboard(self) -> str:
        """The address of the head's dashboard."""
        return f"http://{self._nodes[0].address}:{_BOARD}"

    def _wait_for(self, node: Node) -> None:
        deadline = time.monotonic() + STARTUP_S
        log = self._folder / f"{node.name}.log"
        while "Ray runtime started" not in log.read_text():
            assert node.processes[0].poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def command(self, *command: str, outside: bool = False) -> subprocess.Popen[str]:
        """Start a command on the head, or `outside` of all nodes, with its output in a pipe."""
        node = Node("here", self.outside, []) if outside else self._nodes[0]
        return subprocess.Popen(
            [*node.before, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._variables(node),
            start_new_session=True,
        )

    def kill(self, node: Node) -> None:
        """End all processes of a node at once, as a power cut does, and take it off the network."""
        pids = [process.pid for process in node.processes]
        if node.before:
            listed = ["ip", "netns", "pids", node.before[-1]]
            found = subprocess.run(listed, capture_output=True, text=True, check=False)
            pids += [int(pid) for pid in found.stdout.split()]
        else:
            for pid in list(pids):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in node.processes:
            process.wait()
        if node.before:
            _ip("netns", "del", node.before[-1])
