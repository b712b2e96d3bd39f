"""Servers as child processes on free ports of the loopback; each ends with its `with` block."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its URL and process."""

    url: str
    process: subprocess.Popen[bytes]
    started_s: float

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The most resident memory so far."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics that have no labels, by name."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=30).read().decode()
        rows = [line.split() for line in text.splitlines() if line and not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in rows}

    def cost_line(self) -> str:
        return f"node: {self.rss_bytes() / 2**20:,.0f} MiB resident now, {self.peak_bytes() / 2**20:,.0f} MiB at most"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def node_server(data_dir: Path, *arguments: str) -> Iterator[Server]:
    """`contextstore dev` on a data directory of its own."""
    command = [str(Path(sys.executable).parent / "contextstore"), "dev", "--data-dir", str(data_dir)]
    yield from _serve([*command, *arguments], "/health/ready")


@contextlib.contextmanager
def bare_server() -> Iterator[Server]:
    """The peer."""
    yield from _serve([sys.executable, str(Path(__file__).with_name("bare.py"))], "/bytes")


def _serve(command: list[str], ready_path: str) -> Iterator[Server]:
    port = free_port()
    started = time.monotonic()
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, env=os.environ)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url + ready_path, process)
        yield Server(url, process, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode} before it was ready")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=1).read()
            return
        time.sleep(0.02)
    raise RuntimeError(f"{url} was not ready within {READY_S:g} s")
