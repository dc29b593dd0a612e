"""A Ray cluster for tests which an autoscaler of Ray's own grows: new nodes are raylets of this
machine (its `PROVIDER`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.compute import cluster
from tests.ray_head import RAY, free_ports

MOST = 2
"""How many nodes, of one CPU each, the autoscaler may add to a head without CPUs."""
HEAD_ID = "f" * 51 + "00000"
"""The id that the provider takes for the head's."""
PROVIDER = "FakeMultiNodeProvider"
LOOK_S = 1
"""How often the autoscaler looks, in seconds; 5 where nothing is said."""


@contextmanager
def head(version: int) -> Iterator[str]:
    """The address of a head that has an autoscaler of this version, 1 or 2."""
    port, board, agent, client = free_ports(4)
    address = f"127.0.0.1:{port}"
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need a short path
    config, log = Path(folder, "autoscaler.json"), Path(folder, "log.txt")
    config.write_text(json.dumps(_config(address)), encoding="utf-8")
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": str(LOOK_S),
        "RAY_enable_autoscaler_v2": str(version - 1),
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "0"),
                *("--port", port, "--node-ip-address", "127.0.0.1"),
                *("--dashboard-host", "127.0.0.1", "--dashboard-port", board),
                *("--dashboard-agent-listen-port", agent, "--ray-client-server-port", client),
                *("--temp-dir", folder, "--autoscaling-config", str(config)),
            ],
            env=os.environ | cluster.environment(local=True) | variables,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its own session, so no other Ray's processes
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _config(address: str) -> dict[str, object]:
    """The autoscaler's configuration, as `ray up` takes one."""
    return {
        "cluster_name": "grows",
        "max_workers": MOST,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": f"ray.autoscaler._private.fake_multi_node.node_provider.{PROVIDER}",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST,
            },
        },
        "head_node_type": "ray.head.default",
        # what an autoscaler would need for other machines, and asks for all the same
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "worker_start_ray_commands": [],
        "head_start_ray_commands": [],
        "initialization_commands": [],
        "docker": {},
    }
