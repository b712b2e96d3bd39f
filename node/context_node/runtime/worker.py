"""Threads for what waits on a disk: one for jobs such as checkpoints and scrubs, one for syncs.

Knows nothing of what it runs. A job runs in the thread; its outcome comes back to the event loop that submitted it. Jobs run one at a
time, in order. Why not `run_in_executor`: a queue with one wake-up each way costs a third of it. Syncs happen a thousand times a second,
and even a thread of Python's is too dear for them: it would ask for the interpreter's lock whenever it wakes up. Theirs is native.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from context_node.raft._core import FileSync

Outcome = Callable[[Any, BaseException | None], None]


class Worker:
    """A named daemon thread, and another from the first `sync` on. To be called from the event loop's thread only."""

    is_closed = False
    """Whether `close` was called: nothing is run any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Outcome] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._syncs: FileSync | None = None
        self._sync_outcomes: deque[Outcome] = deque()

    def submit(self, job: Callable[[], Any], outcome: Outcome) -> None:
        """Run `job` in the thread, then `outcome(result, error)` on the event loop. Raises RuntimeError after `close`."""
        if self.is_closed:
            raise RuntimeError("this worker was closed")
        self._jobs.put((job, outcome))

    def sync(self, file: int, outcome: Outcome) -> None:
        """Make durable what was written to an open SQLite file (`databases.wal_file`), then `outcome(None, error)` on the event loop. The
        file stays open until then, or until `close` has returned. Raises RuntimeError after `close`, and OSError where the system gives no
        thread or socket for it."""
        if self.is_closed:
            raise RuntimeError("this worker was closed")
        if self._syncs is None:
            syncs = FileSync()
            self._loop.add_reader(syncs.fileno(), self._synced)
            self._syncs = syncs
        self._syncs.submit(file)
        self._sync_outcomes.append(outcome)

    def _synced(self) -> None:
        assert self._syncs is not None
        told = [(self._sync_outcomes.popleft(), error) for error in self._syncs.take()]
        for outcome, error in told:
            try:
                outcome(None, error)
            except Exception as raised:
                self._loop.call_exception_handler({"message": "the outcome of a sync was not taken", "exception": raised})

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
        """Finish what is queued and end the threads. Outcomes of jobs that are on their way may still arrive, those of syncs do not. May be
        repeated."""
        self.is_closed = True
        self._jobs.put(None)
        self._thread.join()
        if self._syncs is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._syncs.fileno())
            self._syncs.close()
            self._syncs = None

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
