"""Fixtures of the runtime's tests."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

from support.loops import Run
from support.waiting import until


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on either loop; whatever it opened is closed, and then no task may be left."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def go(check: Callable[[AsyncExitStack], Coroutine[Any, Any, None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60.0):
                async with AsyncExitStack() as stack:
                    await check(stack)
                await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "no task is left")

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    return go
