"""An event loop in virtual time for several processes at once, each of which can be killed or paused between any two of its callbacks.

Knows asyncio's own loop and contexts: what is scheduled belongs to the process in whose context it was. Does not know nodes. Invariants:
with the same seed the same callbacks run in the same order; a dead process runs nothing more, not even a `finally`; a paused one runs
nothing until it goes on, while its timers fall due; time passes by a little with every callback, and jumps when nobody has anything to do.
"""

import asyncio
import heapq
import random
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any
from zlib import crc32

OWNER: ContextVar["Process | None"] = ContextVar("owner", default=None)
"""The process that runs now."""

BEGIN_S = 1000.0
"""The time at which every loop begins."""

CALLBACK_S = 20e-6
"""What a callback costs, on average."""


class Process:
    """What is killed and paused as one. `on_death` is called once."""

    def __init__(self, loop: "SimulatedLoop", name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_paused = False
        self.ready: deque[events.Handle] = deque()
        self.on_death: list[Callable[[], None]] = []
        self._loop = loop
        self.context: Context = copy_context()
        self.context.run(OWNER.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine as this process."""
        return self._loop.create_task(work, context=self.context.copy())

    def call_at(self, when: float, callback: Callable[..., Any], *arguments: Any) -> None:
        """Run a callback as this process, not before `when`."""
        self._loop.call_at(when, callback, *arguments, context=self.context)

    def kill(self) -> None:
        """Nothing of it runs from here on."""
        if self.is_dead:
            return
        self.is_dead = True
        self._loop.forget(self)
        for tell in self.on_death:
            tell()

    def pause(self) -> None:
        self.is_paused = True
        self._loop.forget(self)

    def go_on(self) -> None:
        self.is_paused = False
        if self.ready and not self.is_dead:
            self._loop.note_ready(self)


class SimulatedLoop(asyncio.BaseEventLoop):
    """`on_event(process)` is called after every callback. `trace` is a checksum over all that ran."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.events = 0
        self.trace = 0
        self.on_event: Callable[[Process | None], None] = lambda _process: None
        self.errors: list[dict[str, Any]] = []
        """What nobody caught, of living processes."""
        self._now_s = BEGIN_S
        self._nobody = Process(self, "nobody")
        self._runnable: list[Process] = []
        self._pace_s = CALLBACK_S * self.random.choice((0.2, 1.0, 4.0))
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._timer_numbers = 0
        self._milestones: list[tuple[int, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_left = 0
        self.set_task_factory(_make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now_s

    # --- what asyncio schedules ---------------------------------------------------------------------------------------

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> events.Handle:  # type: ignore[override]
        handle = events.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> events.Handle:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> events.TimerHandle:  # type: ignore[override]
        timer = events.TimerHandle(when, callback, args, self, context)
        self._timer_numbers += 1
        heapq.heappush(self._timers, (when, self._timer_numbers, timer))
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> events.TimerHandle:  # type: ignore[override]
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """What would run in a thread runs whole, a little later."""
        done: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except BaseException as error:
                done.set_exception(error)

        self.call_later(self.random.random() * 0.002, work)
        return done

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        owner = OWNER.get()
        if owner is None or not owner.is_dead:
            self.errors.append({"owner": owner.name if owner else "nobody", **context})

    async def passed(self, events: int) -> None:
        """Return once so many callbacks have run since the beginning."""
        waiting = self.create_future()
        self._milestones.append((events, waiting))
        await waiting

    # --- processes ----------------------------------------------------------------------------------------------------

    def _enqueue(self, handle: events.Handle) -> None:
        process = handle._context.get(OWNER) or self._nobody  # type: ignore[attr-defined]
        if process.is_dead:
            return
        process.ready.append(handle)
        if len(process.ready) == 1 and not process.is_paused:
            self._runnable.append(process)

    def note_ready(self, process: Process) -> None:
        if process not in self._runnable:
            self._runnable.append(process)

    def forget(self, process: Process) -> None:
        if process in self._runnable:
            self._runnable.remove(process)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Hold on to a task until its end, or the run's."""
        self._tasks.append(task)
        if len(self._tasks) > 2 * self._tasks_left + 1_000:
            self._tasks = [each for each in self._tasks if not each.done()]
            self._tasks_left = len(self._tasks)

    def drop_all(self) -> None:
        """Forget everything that would still run."""
        self._tasks.clear()
        for process in self._runnable:
            process.ready.clear()
        self._runnable.clear()
        self._timers.clear()

    # --- running ------------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        self._let_timers_fall_due()
        runnable = self._runnable
        if not runnable:
            if not self._timers:
                raise AssertionError("everybody waits for ever")
            self._now_s = max(self._now_s, self._timers[0][0])
            return
        place = int(self.random.random() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[place]
        handle = process.ready.popleft()
        if not process.ready:
            del runnable[place]
        if handle._cancelled:
            return
        self._now_s += self._pace_s * self.random.random() * 2
        self.events += 1
        self._trace(process, handle)
        token = OWNER.set(process)
        handle._run()
        OWNER.reset(token)
        self.on_event(process)
        if self._milestones and self.events >= self._milestones[0][0]:
            self._milestones.pop(0)[1].set_result(None)

    def _let_timers_fall_due(self) -> None:
        timers, now = self._timers, self._now_s
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer._cancelled:
                self._enqueue(timer)

    def _trace(self, process: Process, handle: events.Handle) -> None:
        callback: Any = handle._callback  # type: ignore[attr-defined]
        name = getattr(callback, "__qualname__", "") or type(callback).__name__
        self.trace = crc32(f"{process.name} {name} {self._now_s!r}".encode(), self.trace)

    def note(self, text: str) -> None:
        """Make something a part of the trace."""
        self.trace = crc32(text.encode(), self.trace)


def _make_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: Context | None = None) -> "asyncio.Task[Any]":
    task = asyncio.Task(work, loop=loop, context=context)
    # Those of dead processes never end, and must not be closed while others run: that would run their `finally`.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert isinstance(loop, SimulatedLoop)
    loop.keep(task)
    return task


def run_simulated(loop: SimulatedLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on `loop`, and leave what else there is where it stands."""
    events.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        events.set_event_loop(None)
        loop.close()
