"""What can happen to machines, for whichever local cluster the tests run on. An adapter for each; so far the local Kubernetes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

LOCALKUBE = Path(__file__).resolve().parent / "localkube" / "localkube.py"


class Faults(Protocol):
    """Machines are Kubernetes nodes by name."""

    def cut_power(self, node: str) -> None: ...
    def boot(self, node: str) -> None: ...
    def cut_network(self, node: str) -> None: ...
    def heal_network(self, node: str) -> None: ...
    def hold_api_server(self, seconds: float) -> None:
        """Nothing answers at the API server's address for so long."""
        ...


class LocalkubeFaults:
    """The machines of e2e/localkube."""

    def cut_power(self, node: str) -> None:
        self._run("node-kill", node)

    def boot(self, node: str) -> None:
        self._run("node-start", node)

    def cut_network(self, node: str) -> None:
        self._run("partition", node)

    def heal_network(self, node: str) -> None:
        self._run("heal", node)

    def hold_api_server(self, seconds: float) -> None:
        found = re.search(r"kube-apiserver\s+up\s+pid (\d+)", self._run("status"))
        if found is None:
            raise AssertionError("the API server does not run")
        pid = int(found[1])
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([sys.executable, str(LOCALKUBE), *arguments], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode and arguments[0] != "status":
            raise AssertionError(f"localkube {' '.join(arguments)}: {done.stderr}")
        return done.stdout
