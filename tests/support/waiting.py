"""Waiting for a condition with a deadline, so that tests never sleep for a guessed time.

Knows the monotonic clock only. A poll yields for a millisecond; what counts is the condition, and the deadline turns a
hang into a failure that says what was awaited.
"""

import asyncio
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 30.0) -> None:
    """Return once `condition()` is true. Raises AssertionError naming `what` after `deadline_s` seconds."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"waited {deadline_s} s in vain for: {what}")
        time.sleep(0.001)


async def until(condition: Callable[[], object], what: str, deadline_s: float = 30.0) -> None:
    """As `wait_until`, inside an event loop that goes on running meanwhile."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"waited {deadline_s} s in vain for: {what}")
        await asyncio.sleep(0.001)
