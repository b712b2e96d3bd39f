"""A test on an event loop, with everything that it opened."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

Run = Callable[[Callable[[AsyncExitStack], Coroutine[Any, Any, None]]], None]
