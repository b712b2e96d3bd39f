"""`contextstore export`: contexts become lines of the file that `import` reads.

Knows the order (by id) and how a broken run is taken up: the last whole line tells where it was. Invariants: the output only ever gets
whole lines; memory is bounded by `SPOOL_BYTES` for each context under way, what is larger goes through a temporary file.
"""

import asyncio
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from context_node.cli.client import Client, GaveUp, Refused, context_path
from context_node.cli.conversation_lines import CONFIG_FIELDS
from context_node.cli.exits import CannotStart
from context_node.cli.progress import Progress

SPOOL_BYTES = 4 << 20
LIST_LIMIT = 200
ATTEMPTS_MAX = 4
TAIL_BYTES = 1 << 16


@dataclass(slots=True)
class ExportReport:
    contexts: int = 0
    messages: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Exported:
    """One context's line, ready to be copied to the output."""

    line: IO[bytes]
    messages: int


class Exporter:
    """One run. `after` is the last id that an earlier run wrote; contexts up to it are skipped."""

    def __init__(self, client: Client, out: IO[bytes], progress: Progress, *, concurrency: int = 4) -> None:
        self.report = ExportReport()
        self._client = client
        self._out = out
        self._progress = progress
        self._concurrency = concurrency

    async def run(self, prefix: str, after: str = "") -> ExportReport:
        """Export every active context whose id begins with `prefix`, in the order of ids."""
        waiting: deque[tuple[str, asyncio.Task[Exported]]] = deque()
        try:
            async for view in self._contexts(prefix):
                if after and view["id"] <= after:
                    self.report.skipped += 1
                    continue
                waiting.append((view["id"], asyncio.create_task(self._spool(view))))
                if len(waiting) >= self._concurrency:
                    await self._write(*waiting.popleft())
            while waiting:
                await self._write(*waiting.popleft())
        finally:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
        self._out.flush()
        return self.report

    async def _contexts(self, prefix: str) -> AsyncIterator[dict[str, Any]]:
        cursor = ""
        while True:
            path = f"/v1/contexts?limit={LIST_LIMIT}&order=id&prefix={quote(prefix, safe='')}"
            page = await self._client.call("GET", path + (f"&cursor={quote(cursor, safe='')}" if cursor else ""))
            for view in page.body["contexts"]:
                yield view
            cursor = page.body["next_cursor"]
            if not cursor:
                return

    async def _write(self, context_id: str, task: "asyncio.Task[Exported]") -> None:
        try:
            exported = await task
        except (Refused, GaveUp) as failure:
            if isinstance(failure, Refused) and failure.status == 404:
                return  # purged since it was listed
            self.report.failed += 1
            self._progress.say(f"{context_id}: {failure}")
            return
        with exported.line as line:
            await asyncio.to_thread(copy, line, self._out)
        self.report.contexts += 1
        self.report.messages += exported.messages
        self._progress.reached(self.report.contexts, f"{self.report.contexts:,} contexts, {self.report.messages:,} messages")

    async def _spool(self, view: dict[str, Any]) -> Exported:
        """One context's whole line in a temporary file, so that a connection that breaks leaves no half line in the output."""
        for attempt in range(ATTEMPTS_MAX):
            spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - who writes it to the output closes it
            try:
                messages = await self._fill(view, spool)
                return Exported(spool, messages)
            except GaveUp:
                spool.close()
                if attempt + 1 == ATTEMPTS_MAX:
                    raise
                await self._client.pause(attempt)
            except BaseException:
                spool.close()
                raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _fill(self, view: dict[str, Any], spool: IO[bytes]) -> int:
        spool.write(msgspec.json.encode(head_of(view))[:-1] + b',"messages":[')
        count, rest = 0, b""
        async with self._client.stream(context_path(view["id"]) + "/export") as content:
            async for chunk in content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        spool.write(b"," + line if count else line)
                        count += 1
        if rest:
            raise GaveUp("the export ended in the middle of a message")
        spool.write(b"]}\n")
        return count


def head_of(view: dict[str, Any]) -> dict[str, Any]:
    """What a line says of its context: the id and the configuration, as `import` and PUT take them."""
    head = {"id": view["id"], **{name: view[name] for name in CONFIG_FIELDS}}
    # A named policy is told with its generation; a request only names it.
    head["policy"] = {name: value for name, value in view["policy"].items() if name in ("strategy", "config", "ref")}
    return head


def copy(line: IO[bytes], out: IO[bytes]) -> None:
    line.seek(0)
    shutil.copyfileobj(line, out, 1 << 20)


def resume_point(path: Path) -> str:
    """The id of the file's last whole line, after cutting a broken one off; empty for a file without any. Raises CannotStart."""
    try:
        with path.open("r+b") as file:
            end = whole_lines_end(file)
            file.truncate(end)
            if not end:
                return ""
            file.seek(line_start(file, end - 1))
            found = msgspec.json.decode(file.readline())
            return str(found["id"])
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CannotStart(f"{path} cannot be taken up: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CannotStart(f"{path} is no export: its last line is not a conversation. Write to another file.") from error


def whole_lines_end(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    return line_start(file, file.seek(0, os.SEEK_END))


def line_start(file: IO[bytes], before: int) -> int:
    """The position behind the last newline that stands before `before`; 0 if there is none."""
    while before > 0:
        start = max(0, before - TAIL_BYTES)
        file.seek(start)
        place = file.read(before - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        before = start
    return 0
