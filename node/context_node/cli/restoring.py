"""`contextstore restore`: an archive becomes contexts of an empty cluster.

Knows the order that makes it safe to repeat: named policies first, then each context's messages from the first that is not there, its
record last; a part that comes twice does nothing. Does not know SQL, nor what a record says: the cluster checks both. Invariants: at most
`concurrency` contexts are under way, each with two parts in memory; a context that fails stops none of the others.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import msgspec

from context_node.archive.reading import ArchiveReader, ContextRow, MessageRow
from context_node.cli.client import Client, GaveUp, Refused, context_path
from context_node.cli.exits import CannotStart, WorkFailed
from context_node.cli.progress import Progress
from context_node.contexts.commands import PolicyRecord, RestoredMessage, RestoreEnd
from context_node.contexts.context import Head, read_head
from context_node.contexts.restore_checks import MALFORMED
from context_node.contexts.restore_parts import Held, held_by
from context_node.contexts.restoring import Restore

PART_BYTES = 512 * 1024
REBUILT_FROM_MAX = 10_000
"""So many of the newest messages are looked at where a window has to be made anew: as many as a window holds."""

PROBLEMS_SHOWN_MAX = 50
MSGPACK = "application/msgpack"
_pack = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class RestoreReport:
    """Counts of a run. `present` contexts were whole before; `messages` and `bytes` were sent now. `failed` are ids."""

    contexts: int = 0
    present: int = 0
    messages: int = 0
    size_bytes: int = 0
    older: int = 0
    cut: int = 0
    policies: int = 0
    failed: set[str] = field(default_factory=set)


class ContextFailed(Exception):
    """A context could not be restored. The message says why."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A context of the archive as it can be restored: with messages up to `last_seq`."""

    row: ContextRow
    record: bytes
    head: Head
    last_seq: int


async def archived(archive: ArchiveReader, row: ContextRow) -> Archived:
    """What can be restored of a context. Raises `ArchiveError`, `ContextFailed`."""
    record = await archive.record(row)
    try:
        head = read_head(record)
    except MALFORMED as error:
        raise ContextFailed("Its record in the archive cannot be read; it is damaged, or of a newer version.") from error
    last_seq = row.archived_seq
    if head.last_seq > last_seq:
        last_seq = await archive.whole_upto(row, head.last_seq)
    return Archived(row, record, head, last_seq)


class Restorer:
    """One run. `run` after `policies`."""

    def __init__(self, client: Client, archive: ArchiveReader, progress: Progress, *, concurrency: int = 8, resume: bool = False) -> None:
        self.report = RestoreReport()
        self._client, self._archive, self._progress = client, archive, progress
        self._concurrency, self._resume = concurrency, resume
        self._generations: dict[str, int] = {}
        """By name of a policy that contexts may follow: the archive's generation of it; 0 where the cluster's is another policy."""
        self._done = 0

    async def check_target(self) -> None:
        """Whether the cluster is empty, as it has to be at the beginning. Raises `CannotStart`."""
        page = await self._client.call("GET", "/v1/contexts?status=any&limit=1")
        if page.body["contexts"] and not self._resume:
            raise CannotStart(
                "The cluster is not empty: a restore begins with an empty one. Give --resume to go on with a restore that was broken off: "
                "what is there and equal is skipped, what differs is left as it is and listed."
            )

    async def policies(self) -> None:
        """Bring the named policies back, the oldest first. One that the cluster has already stays as it is there. Raises `WorkFailed`."""
        records = sorted(await self._archive.policies(), key=lambda record: (record.created_at_ms, record.name))
        try:
            for record in records:
                await self._policy(record)
        except (Refused, GaveUp) as error:
            raise WorkFailed(f"Named policies could not be restored: {error}.") from error
        listed = await self._client.call("GET", "/v1/policies")
        for policy in listed.body["policies"]:
            self._generations.setdefault(policy["name"], 0)

    async def _policy(self, record: PolicyRecord) -> None:
        path = f"/v1/policies/{quote(record.name, safe='')}"
        wanted = {
            "strategy": record.strategy,
            "config": msgspec.json.decode(record.config),
            "token_budget": record.token_budget,
            "trigger_ratio": record.trigger_ratio,
            "target_ratio": record.target_ratio,
            "tokenizer": record.tokenizer,
            "default": record.default,
        }
        try:
            present: dict[str, Any] = (await self._client.call("GET", path)).body
        except Refused as refusal:
            if refusal.code != "policy_not_found":
                raise
            await self._client.call("PUT", path, body=msgspec.json.encode(wanted))
            self.report.policies += 1
            if record.deleted:
                # Contexts may follow it still.
                await self._client.call("DELETE", path)
        else:
            if {name: present[name] for name in wanted} != wanted:
                self._progress.say(f"policy {record.name}: the cluster has another one of that name, which stays and acts from now on")
                self._generations[record.name] = 0
                return
        self._generations[record.name] = record.generation

    async def run(self) -> RestoreReport:
        """Restore every context. Raises `ArchiveError`, `WorkFailed`."""
        free = asyncio.Semaphore(self._concurrency)
        newest = ""
        try:
            async with asyncio.TaskGroup() as tasks, aclosing(self._archive.contexts()) as rows:
                async for row in rows:
                    if row.id == newest:
                        # Of a context that was purged; the archive had not been told yet.
                        self.report.older += 1
                        continue
                    newest = row.id
                    await free.acquire()
                    tasks.create_task(self._context(row, free))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self.report

    async def _context(self, row: ContextRow, free: asyncio.Semaphore) -> None:
        try:
            await self._restore(await archived(self._archive, row))
        except (ContextFailed, Refused, GaveUp) as failure:
            self.failed(row.id, str(failure))
        finally:
            free.release()

    def failed(self, context_id: str, reason: str) -> None:
        """Count a context that failed, and say so."""
        failed = self.report.failed
        failed.add(context_id)
        if len(failed) <= PROBLEMS_SHOWN_MAX:
            self._progress.say(f"{context_id}: {reason}")
        elif len(failed) == PROBLEMS_SHOWN_MAX + 1:
            self._progress.say("more contexts failed; they are only counted from here on")

    async def _restore(self, context: Archived) -> None:
        row, last_seq = context.row, context.last_seq
        held, end = await self._end(context)
        first, is_present = await self._begin(context)
        if is_present:
            self._count(first - 1, 0, 0)
            await self._send(row.id, Restore(self._source(row), first, (), end))
            self.report.present += 1
            return
        self._count(first - 1, 0, 0)
        page = await self._page(row, first, last_seq)
        while True:
            following = first + len(page)
            is_last = following > last_seq
            reading = None if is_last else asyncio.create_task(self._page(row, following, last_seq))
            try:
                messages = tuple([_restored(message, held) for message in page])
                await self._send(row.id, Restore(self._source(row), first, messages, end if is_last else None))
                self._count(len(page), len(page), sum(len(message.raw) for message in page))
                if reading is None:
                    break
                first, page = following, await reading
            finally:
                if reading is not None:
                    reading.cancel()
        self.report.contexts += 1
        self.report.cut += context.head.last_seq > last_seq

    async def _end(self, context: Archived) -> tuple[Held, RestoreEnd]:
        row, last_seq, head = context.row, context.last_seq, context.head
        ref = head.config.policy.ref
        if ref is not None and ref not in self._generations:
            raise ContextFailed(f"It follows the policy {ref!r}, which the archive does not have; PUT it, then repeat with --resume.")
        costs = await self._archive.newest_costs(row, last_seq, REBUILT_FROM_MAX) if head.last_seq > last_seq else []
        try:
            held, rebuild_from = held_by(context.record, last_seq, costs)
        except MALFORMED as error:
            raise ContextFailed("Its record in the archive cannot be read; it is damaged, or of a newer version.") from error
        is_current = ref is None or self._generations[ref] == head.policy_generation
        return held, RestoreEnd(context.record, last_seq, rebuild_from, is_current)

    async def _begin(self, context: Archived) -> tuple[int, bool]:
        """The first message to send, and whether the context seems to be whole already."""
        if not self._resume:
            return 1, False
        found = await self._client.call("GET", context_path(context.row.id), missing_ok=True)
        if found.status == 404:
            return 1, False
        if found.body["status"] == "restoring":
            return int(found.body["last_seq"]) + 1, False
        return context.last_seq + 1, True

    async def _page(self, row: ContextRow, first: int, last: int) -> list[MessageRow]:
        """Messages from `first` on, up to a hole. Raises `ContextFailed` if it begins with one; `ArchiveError`."""
        if first > last:
            return []
        page = await self._archive.messages(row.id, row.incarnation, first, last, bytes_max=PART_BYTES)
        whole = [message for seq, message in enumerate(page, first) if message.seq == seq]
        if not whole:
            raise ContextFailed(f"The archive lacks message {first}, which it had confirmed. The context ends before it, still restoring.")
        return whole

    async def _send(self, context_id: str, part: Restore) -> None:
        headers = {"Content-Type": MSGPACK}
        await self._client.call("POST", context_path(context_id) + "/restore", body=_pack(part), headers=headers)

    def _source(self, row: ContextRow) -> str:
        return f"{self._archive.cluster_id}:{row.incarnation}"

    def _count(self, done: int, messages: int, size: int) -> None:
        report = self.report
        report.messages += messages
        report.size_bytes += size
        self._done += done
        failed = f", {len(report.failed):,} failed" if report.failed else ""
        self._progress.reached(self._done, f"{report.contexts + report.present:,} contexts, {report.size_bytes / 1e6:,.0f} MB{failed}")


def _restored(message: MessageRow, held: Held) -> RestoredMessage:
    # The id itself stands in the message; what it remembers does not.
    row = message.id_row
    named = None
    if row is not None:
        try:
            name = _name_of(message.raw).id
        except MALFORMED as error:
            raise ContextFailed(f"Message {message.seq} in the archive is damaged.") from error
        named = (name, row.version, row.estimate, row.digest)
    return RestoredMessage(message.raw, message.info, named, message.seq in held)


class _Named(msgspec.Struct):
    id: str


_name_of = msgspec.json.Decoder(_Named).decode
