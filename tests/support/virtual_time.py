"""Event loop and workers without threads and without waiting, so that the same seed gives the same run.

Knows asyncio's own event loop. Invariants: time passes only when nothing else can happen, and then jumps to the next timer; a worker's job
runs whole, in the turn that submitted it, and its outcome comes in a later turn.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from context_node.raft._core import sync_file
from context_node.runtime.worker import Outcome, Worker


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps over the time in which nothing would happen."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        # Private to asyncio, unchanged since 3.4: `_ready` are callbacks that are due, `_scheduled` a heap of timers.
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self._now_s = max(self._now_s, loop._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


class InlineWorker(Worker):
    """A worker without a thread: what it is given happens at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop

    def submit(self, job: Callable[[], Any], outcome: Outcome) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = job()
        except Exception as raised:
            error = raised
        self._loop.call_soon(outcome, result, error)

    def sync(self, file: int, outcome: Outcome) -> None:
        self.submit(lambda: sync_file(file), outcome)

    def close(self) -> None:
        """Nothing is under way."""


class UnsyncedWorker(InlineWorker):
    """One that forgets to sync."""

    def sync(self, file: int, outcome: Outcome) -> None:
        self._loop.call_soon(outcome, None, None)


def run_virtually(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a loop of its own, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(work)
