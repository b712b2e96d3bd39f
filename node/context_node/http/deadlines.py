"""How long a request may take, watched for all requests together.

Knows tasks and a clock. Does not know what a request does. `asyncio.timeout` arms and disarms a timer for each request, a tenth of a
small one; every request here has the same limit, so they end in the order in which they began, and one timer that looks at the oldest
serves them all. Invariant: a task is cancelled at most once for a request, and only while that request is being worked on.
"""

import asyncio
from collections.abc import Callable
from typing import Any

Task = asyncio.Task[Any]


class Deadlines:
    """Requests under way, oldest first. A request is late at most `timeout_s` plus a tenth of it (at most 0.5 s) after it began."""

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._ends: dict[Task, float] = {}
        self._cancelled: set[Task] = set()
        self._is_watching = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: Task) -> None:
        """`task` works on a request from now on; it must call `end`."""
        self._ends[task] = self._clock() + self.timeout_s
        if not self._is_watching:
            self._is_watching = True
            self._watch_later()

    def has_expired(self, task: Task) -> bool:
        """Whether it was the deadline that cancelled the task."""
        return task in self._cancelled

    def end(self, task: Task) -> None:
        """The request is done, in whatever way."""
        self._ends.pop(task, None)
        if self._cancelled and task in self._cancelled:
            self._cancelled.discard(task)
            task.uncancel()

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _watch_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(min(0.5, self.timeout_s / 10), self._watch)

    def _watch(self) -> None:
        for task in self._late(self._clock()):
            del self._ends[task]
            self._cancelled.add(task)
            task.cancel()
        self._is_watching = bool(self._ends)
        if self._is_watching:
            self._watch_later()

    def _late(self, now: float) -> list[Task]:
        late = []
        for task, end in self._ends.items():
            if end > now:
                break
            late.append(task)
        return late
