"""The command `contextstore` as a real process: nodes that are started and stopped, commands that are run to their end.

Knows the command line and HTTP from outside only. Invariant: a process that was started here is gone when its block ends.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from support.waiting import wait_until

COMMAND = (sys.executable, "-m", "context_node")
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 60.0


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without any setting of ours, so that a developer's own cannot change a test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONTEXTSTORE_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


def run_command(*arguments: str, stdin: bytes = b"", timeout_s: float = 120.0, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run `contextstore ARGUMENTS` to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=timeout_s, env=clean_environment(**environment), check=False
    )


@dataclass(slots=True)
class RunningNode:
    """A node's process. `errors` are its lines on standard error so far, `said` those on standard output."""

    process: "subprocess.Popen[str]"
    said: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens, from its log."""
        found = [match[0] for line in [*self.errors] if "listening" in line and (match := re.search(r"https?://[^\s\"/]+:\d+", line))]
        return found[0] if found else ""

    @property
    def is_ready(self) -> bool:
        return any(re.search(r'"event":"ready"|info +ready ', line) for line in [*self.errors])

    def wait_ready(self) -> "RunningNode":
        wait_until(lambda: self.is_ready or self.process.poll() is not None, "the node to be ready or to end", START_DEADLINE_S)
        assert self.process.poll() is None, f"the node ended: {self.errors}"
        return self

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_end(self) -> int:
        """The exit code, once the process ended and everything it said was read."""
        code = self.process.wait(STOP_DEADLINE_S)
        for reader in self.readers:
            reader.join(STOP_DEADLINE_S)
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait_end()


@contextmanager
def running_node(data_dir: Path, *arguments: str, command: str = "dev", ready: bool = True, **environment: str) -> Iterator[RunningNode]:
    """A node on a free port of loopback, ready when the block begins; killed at its end if it still runs."""
    words = [*COMMAND, command, "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir), *arguments]
    with running_process(words, ready=ready, **environment) as node:
        yield node


@contextmanager
def running_process(words: Sequence[str], *, ready: bool = True, **environment: str) -> Iterator[RunningNode]:
    """As `running_node`, by any command that runs one."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(**environment)
    )
    node = RunningNode(process)
    assert process.stdout is not None and process.stderr is not None
    for stream, lines in ((process.stdout, node.said), (process.stderr, node.errors)):
        reader = threading.Thread(target=collect, args=(stream, lines), daemon=True)
        reader.start()
        node.readers.append(reader)
    try:
        yield node.wait_ready() if ready else node
    finally:
        if process.poll() is None:
            process.kill()
        node.wait_end()
        process.stdout.close()
        process.stderr.close()


def collect(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
