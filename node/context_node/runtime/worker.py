"""One thread for what waits on a disk: COMMITs, checkpoints, scrubs.

Knows nothing of what it runs. A job runs in the thread; its outcome comes back to the event loop that submitted it. Jobs run one at a
time, in order. Why not `run_in_executor`: a commit happens thousands of times a second, and a queue with one wake-up each way costs a
third of it.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Outcome = Callable[[Any, BaseException | None], None]


class Worker:
    """A named daemon thread. `submit` may be called from the event loop's thread only."""

    is_closed = False
    """Whether `close` was called: nothing is run any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Outcome] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], outcome: Outcome) -> None:
        """Run `job` in the thread, then `outcome(result, error)` on the event loop. Raises RuntimeError after `close`."""
        if self.is_closed:
            raise RuntimeError("this worker was closed")
        self._jobs.put((job, outcome))

    async def run(self, job: Callable[[], Any]) -> Any:
        """Run `job` in the thread and wait for its result."""
        done: asyncio.Future[Any] = self._loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        self.submit(job, settle)
        return await done

    def close(self) -> None:
        """Finish what is queued and end the thread. Outcomes that are on their way may still arrive. May be repeated."""
        self.is_closed = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, outcome = entry
            result: Any = None
            error: BaseException | None = None
            try:
                result = job()
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(outcome, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits for this any more.
                return
