"""Appends that arrive in one turn of the event loop, counted and proposed together at its end.

Why: counting tokens walks through megabytes of tables, and between two sockets' worth of other work they are cold again. Counted one
after the other, a message costs a third of what it costs alone (measured in a serving process: 15 µs against 45 µs for 46 tokens).
Nothing waits longer for it: the batch that a proposal joins is closed at the end of the turn anyway. Invariant: each append is answered
by its own reply or its own refusal; one that cannot be proposed harms no other.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Cohort(Generic[T, R]):
    """`begin(task)` starts the work of one member and gives the future of its result; a member's future follows that one."""

    def __init__(self, begin: Callable[[T, "asyncio.Future[R]"], None]) -> None:
        self._begin = begin
        self._members: list[tuple[T, asyncio.Future[R]]] = []

    def join(self, task: T) -> "asyncio.Future[R]":
        """Have `task` begun at the end of this turn. The future gives its result, or raises what `begin` raised."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()
        if not self._members:
            loop.call_soon(self._run)
        self._members.append((task, result))
        return result

    def _run(self) -> None:
        members, self._members = self._members, []
        for task, result in members:
            if result.done():
                continue  # whoever asked has gone
            try:
                self._begin(task, result)
            except Exception as error:
                result.set_exception(error)
