"""What can happen to machines, for whichever local cluster the tests run on: one small port, and an adapter for each."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kubernetes_cli import run


class Faults(Protocol):
    """Machines are Kubernetes nodes by name. `cut_power` ends everything on it at once; `boot` starts it again with its old disk.
    `cut_network` leaves its processes running."""

    def cut_power(self, node: str) -> None: ...
    def boot(self, node: str) -> None: ...
    def cut_network(self, node: str) -> None: ...
    def heal_network(self, node: str) -> None: ...
    def hold_api_server(self, seconds: float) -> None:
        """Nothing answers at the API server's address for so long."""
        ...


class LocalkubeFaults:
    """The machines of e2e/localkube, by its command."""

    def __init__(self, localkube: Callable[..., str]) -> None:
        self._localkube = localkube

    def cut_power(self, node: str) -> None:
        self._localkube("node-kill", node, timeout_s=120.0)

    def boot(self, node: str) -> None:
        self._localkube("node-start", node, timeout_s=120.0)

    def cut_network(self, node: str) -> None:
        self._localkube("partition", node, timeout_s=120.0)

    def heal_network(self, node: str) -> None:
        self._localkube("heal", node, timeout_s=120.0)

    def hold_api_server(self, seconds: float) -> None:
        # It exits with 1 where a machine is down.
        found = re.search(r"kube-apiserver\s+up\s+pid (\d+)", self._localkube("status", timeout_s=120.0, is_tried=True))
        assert found is not None, "the API server does not run"
        pid = int(found[1])
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)


class KindFaults:
    """The machines of kind: containers. The network is cut at the machine's own interface, so that it keeps its address."""

    def __init__(self, control_plane: str) -> None:
        self._control_plane = control_plane

    def cut_power(self, node: str) -> None:
        run("docker", "kill", node)

    def boot(self, node: str) -> None:
        run("docker", "start", node)

    def cut_network(self, node: str) -> None:
        run("docker", "exec", node, "ip", "link", "set", "eth0", "down")

    def heal_network(self, node: str) -> None:
        # The default route went with the interface.
        gateway = run("docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", node).strip()
        run("docker", "exec", node, "ip", "link", "set", "eth0", "up")
        run("docker", "exec", node, "ip", "route", "replace", "default", "via", gateway)

    def hold_api_server(self, seconds: float) -> None:
        with self._stopped("kube-apiserver"):
            time.sleep(seconds)

    @contextmanager
    def _stopped(self, process: str) -> Iterator[None]:
        run("docker", "exec", self._control_plane, "pkill", "-STOP", process)
        try:
            yield
        finally:
            run("docker", "exec", self._control_plane, "pkill", "-CONT", process)
