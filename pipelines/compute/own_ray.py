"""The Ray that a command starts for itself alone: without those of its processes that serve others,
and out of the reach of signals that are meant for the command.

Ray's `init` has no options for this, so its own classes are changed while it runs. Where a version
of Ray gives these attributes other names, a test fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def lean() -> Iterator[None]:
    """A block in which `ray.init` starts no autoscaler, as there is one machine; no log monitor, as
    the driver does not ask for what workers print; and no dashboard, for which it would wait.

    The port of the agent on the machine is any free one. Ray takes one of its own for it, which the
    agent of another command may have, or of one that was killed: the agent then tries again for
    three seconds, in which the command waits.

    Ray's processes get process groups of their own. Whoever ends a command may send SIGTERM to its
    whole group, as Prefect and `timeout` do: the command then has the workers save, for which it
    needs Ray. When the command has ended, so does Ray.
    """
    from ray._private import node, parameter, ray_constants, services

    real: Any = parameter.RayParams

    class Params(real):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.no_monitor = True
            self.include_log_monitor = False
            self.dashboard_agent_listen_port = 0

    popen: Any = services.ConsolePopen

    class Apart(popen):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named, process_group=0)

    def no_dashboard(self: Any, **_: Any) -> None:
        self._webui_url = ""
        # the agent would look for the address every second, and write down that there is none
        self.get_gcs_client().internal_kv_put(
            ray_constants.DASHBOARD_ADDRESS.encode(),
            f"127.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT}".encode(),
            True,
            ray_constants.KV_NAMESPACE_DASHBOARD,
        )

    with (
        patch.object(parameter, "RayParams", Params),
        patch.object(node.Node, "start_api_server", no_dashboard),
        patch.object(services, "ConsolePopen", Apart),
    ):
        yield
