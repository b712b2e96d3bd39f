"""Showing how far a long command is: a bar on a terminal, a line now and then anywhere else.

Knows tqdm and standard error; standard output stays free for what a command gives. Invariant: a log file never fills with control
characters.
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

LINE_EVERY_S = 5.0


class Progress:
    """Counts towards `total` (None: unknown), with free text behind it. A context manager."""

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        unit: str,
        is_bytes: bool = False,
        quiet: bool = False,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._stream = stream or sys.stderr
        self._now = now
        self._quiet = quiet
        self._done = 0
        self._last_line_s = now()
        self._bar = None
        if not quiet and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                desc=what,
                unit=unit,
                unit_scale=is_bytes,
                unit_divisor=1024,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def reached(self, done: int, text: str) -> None:
        """`done` of the total is reached; `text` is shown behind it."""
        advance, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(advance)
        elif not self._quiet and self._now() - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = self._now()
            share = f" {100 * done // self._total} %," if self._total else ""
            self.say(f"{self._what}:{share} {text}")

    def say(self, line: str) -> None:
        """A line of its own, above the bar if there is one. Shown also when quiet: it is about trouble or the end."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)
