"""Fixtures of the operator's tests."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from support.emulated_kubernetes import EmulatedKubernetes
from support.operator_passes import Operator, Run


@pytest.fixture
def run() -> Run:
    def go(check: Callable[[Operator], Coroutine[Any, Any, None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120), AsyncExitStack() as stack:
                kubernetes = EmulatedKubernetes()
                operator = Operator(kubernetes, await kubernetes.serve(stack), stack)
                try:
                    await check(operator)
                finally:
                    await operator.reconciler.close()

        asyncio.run(bounded())

    return go
