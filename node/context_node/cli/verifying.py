"""`contextstore verify-archive`: what a cluster has beside what its archive has, context by context.

Knows both lists in the order of ids and walks them together. Invariants: at most `concurrency` contexts are under way; what the archive is
only late with is told apart from what it lacks; what looks wrong because something changed meanwhile is looked at again before it is said.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from context_node.archive.reading import ArchiveReader, ContextRow, Stray
from context_node.cli.client import Client, GaveUp, Refused, context_path
from context_node.cli.comparing import Ranges, archived_bodies, compared
from context_node.cli.progress import Progress

LIST_LIMIT = 200
FINDINGS_MAX = 1_000
AGAIN_S = 3.0
"""A purge reaches the archive a moment later: what seems left over is looked at again so long after before it is said."""

SUSPECTS_MAX = 10_000
"""So many are looked at again. Where there are more it is no purge that is under way."""

LATE = "not archived yet"


class Finding(NamedTuple):
    """Something that is not the same on both sides."""

    kind: str
    context_id: str
    what: str


@dataclass(slots=True)
class VerifyReport:
    """Counts of a run; `findings` are the first `FINDINGS_MAX`, `kinds` counts them all."""

    contexts: int = 0
    messages: int = 0
    size_bytes: int = 0
    late_messages: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def differences(self) -> int:
        return sum(count for kind, count in self.kinds.items() if kind != LATE)


class Verifier:
    """One run."""

    def __init__(self, client: Client, archive: ArchiveReader, progress: Progress, *, concurrency: int = 8) -> None:
        self.report = VerifyReport()
        self._client, self._archive, self._progress = client, archive, progress
        self._concurrency = concurrency
        self._suspects: list[ContextRow] = []

    async def run(self, prefix: str) -> VerifyReport:
        """Compare every context whose id begins with `prefix`. Raises `Refused`, `GaveUp`, `ArchiveError`."""
        free = asyncio.Semaphore(self._concurrency)
        try:
            async with (
                asyncio.TaskGroup() as tasks,
                aclosing(self._archive.contexts(prefix)) as rows,
                aclosing(self._views(prefix)) as views,
            ):
                async for view, archived in beside(views, rows):
                    await free.acquire()
                    tasks.create_task(self._one(view, archived, free))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        await self._left_over()
        async with aclosing(self._archive.stray(prefix)) as strays:
            async for stray in strays:
                await self._stray(stray)
        return self.report

    async def _views(self, prefix: str) -> AsyncGenerator[dict[str, Any], None]:
        cursor = ""
        while True:
            path = f"/v1/contexts?limit={LIST_LIMIT}&order=id&status=any&prefix={quote(prefix, safe='')}"
            page = await self._client.call("GET", path + (f"&cursor={quote(cursor, safe='')}" if cursor else ""))
            for view in page.body["contexts"]:
                yield view
            cursor = page.body["next_cursor"]
            if not cursor:
                return

    async def _one(self, view: dict[str, Any] | None, rows: Sequence[ContextRow], free: asyncio.Semaphore) -> None:
        try:
            own = None if view is None else int(view["incarnation"])
            for row in rows:
                if row.incarnation != own and len(self._suspects) < SUSPECTS_MAX:
                    self._suspects.append(row._replace(record=None))
                elif row.incarnation != own:
                    self._say_left_over(row)
            if view is not None:
                await self._context(view, next((row for row in rows if row.incarnation == own), None))
        finally:
            free.release()
        report = self.report
        report.contexts += 1
        text = f"{report.contexts:,} contexts, {report.messages:,} messages, {report.size_bytes / 1e6:,.0f} MB"
        self._progress.reached(report.contexts, text + (f", {report.differences:,} differences" if report.differences else ""))

    def _found(self, kind: str, context_id: str, what: str) -> None:
        self.report.kinds[kind] += 1
        if len(self.report.findings) < FINDINGS_MAX:
            self.report.findings.append(Finding(kind, context_id, what))

    async def _left_over(self) -> None:
        """Contexts of the archive that the cluster did not list: made since, or purged and erased by now, or really left over."""
        if not self._suspects:
            return
        await asyncio.sleep(AGAIN_S)
        for row in self._suspects:
            if await self._archive.mark(row.id, row.incarnation) is None:
                continue
            found = await self._client.call("GET", context_path(row.id), missing_ok=True)
            if found.body is None or int(found.body["incarnation"]) != row.incarnation:
                self._say_left_over(row)

    def _say_left_over(self, row: ContextRow) -> None:
        self._found("left over", row.id, f"incarnation {row.incarnation}, {row.archived_seq:,} messages: not in the cluster")

    async def _context(self, view: dict[str, Any], row: ContextRow | None) -> None:
        context_id, incarnation, upto = view["id"], int(view["incarnation"]), int(view["archived_seq"])
        late = int(view["last_seq"]) - upto
        if late:
            self.report.late_messages += late
            self._found(LATE, context_id, f"{late:,} messages, from {upto + 1} on")
        mark = None if row is None else row.archived_seq
        if upto > (mark or 0):
            # It may have been archived since the archive's contexts were listed.
            mark = await self._archive.mark(context_id, incarnation)
        if upto > (mark or 0):
            told = "its row is not there" if mark is None else f"its row says {mark}"
            self._found("missing", context_id, f"{upto:,} messages were confirmed, and {told}")
        try:
            result = await compared(self._client, self._archive, context_id, incarnation, upto)
        except (Refused, GaveUp) as failure:
            await self._unreadable(context_id, incarnation, upto, failure)
            return
        self.report.messages += result.messages
        self.report.size_bytes += result.size_bytes
        if result.missing.count:
            self._found("missing", context_id, f"{result.missing.count:,} messages: {result.missing}")
        if result.differing.count:
            self._found("differs", context_id, f"{result.differing.count:,} messages: {result.differing}")

    async def _unreadable(self, context_id: str, incarnation: int, upto: int, failure: Exception) -> None:
        """The cluster did not give the history: purged meanwhile, or in trouble, which a hole where it reads the archive itself is too."""
        present = await self._client.call("GET", context_path(context_id), missing_ok=True)
        if present.body is None or int(present.body["incarnation"]) != incarnation:
            return
        missing, seq = Ranges(), 0
        async for body in archived_bodies(self._archive, context_id, incarnation, upto):
            seq += 1
            if body is None:
                missing.add(seq, seq)
        if missing.count:
            self._found("missing", context_id, f"{missing.count:,} messages: {missing}")
        self._found("unreadable", context_id, f"the cluster does not give its history: {failure}")

    async def _stray(self, stray: Stray) -> None:
        """Messages that no mark covers: ahead of it in a moment of change, of a context that lost its row, or of none at all."""
        found = await self._client.call("GET", context_path(stray.id), missing_ok=True)
        is_here = found.body is not None and int(found.body["incarnation"]) == stray.incarnation
        if is_here and stray.newest_seq <= int(found.body["last_seq"]):
            return
        if await self._archive.newest_seq(stray.id, stray.incarnation) < stray.newest_seq:
            return  # erased meanwhile
        if is_here:
            what = f"messages up to {stray.newest_seq}, beyond the cluster's newest, {found.body['last_seq']}"
        else:
            what = f"incarnation {stray.incarnation}, {stray.messages:,} messages without a context"
        self._found("left over", stray.id, what)


async def beside(
    views: AsyncIterator[dict[str, Any]], rows: AsyncIterator[ContextRow]
) -> AsyncIterator[tuple[dict[str, Any] | None, list[ContextRow]]]:
    """Both lists, which ascend by id, walked together: for each id the cluster's context and the archive's rows."""
    view, row = await anext(views, None), await anext(rows, None)
    while view is not None or row is not None:
        ids = ([str(view["id"])] if view is not None else []) + ([row.id] if row is not None else [])
        context_id = min(ids)
        here, there = None, []
        if view is not None and view["id"] == context_id:
            here, view = view, await anext(views, None)
        while row is not None and row.id == context_id:
            there.append(row)
            row = await anext(rows, None)
        yield here, there
