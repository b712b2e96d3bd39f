"""`contextstore import`: conversations of a file become contexts.

Knows the order that makes it safe to repeat: what the context already holds is skipped, each batch goes with `if_seq` (the number of
messages before it) and an idempotency key, so a retry or a second run never appends twice. Invariants: at most `concurrency`
conversations are in memory; conversations run beside each other, the batches of one conversation in order; a conversation that fails
stops none of the others.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec

from context_node.cli.client import Client, GaveUp, Refused, context_path
from context_node.cli.conversation_lines import Conversation, Line, Lines
from context_node.cli.progress import Progress
from context_node.contexts.refusals import InvalidRequest
from context_node.http.openai_messages import parts_of

BATCH_BYTES_MAX = 4 << 20
"""Half of what a node takes in one body by default."""

PROBLEMS_SHOWN_MAX = 50


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`prefix` goes before each id; `config` wins over a line's own; `batch` is the most messages of one append."""

    prefix: str = ""
    config: tuple[tuple[str, Any], ...] = ()
    concurrency: int = 8
    batch: int = 100


@dataclass(slots=True)
class ImportReport:
    """Counts of a run. `present` messages were there already."""

    contexts: int = 0
    appended: int = 0
    present: int = 0
    failed: int = 0


class LineFailed(Exception):
    """A conversation could not be imported, or not wholly. The message says what to do."""


class Importer:
    """One run over one file. Owned by one task."""

    def __init__(self, client: Client, options: ImportOptions, progress: Progress) -> None:
        self.report = ImportReport()
        self._client = client
        self._options = options
        self._progress = progress
        self._under_way: dict[str, asyncio.Event] = {}

    async def run(self, lines: Lines) -> ImportReport:
        """Import every line. Raises WorkFailed if the node does not accept the key."""
        free = asyncio.Semaphore(self._options.concurrency)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await free.acquire()
                    # In a thread: standard input may be a slow pipe, and requests under way must not wait for it.
                    line = await asyncio.to_thread(lines.next)
                    if line is None:
                        break
                    tasks.create_task(self._line(line, lines, free))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self.report

    async def _line(self, line: Line, lines: Lines, free: asyncio.Semaphore) -> None:
        try:
            if line.conversation is None:
                raise LineFailed(line.problem)
            conversation = replace(line.conversation, id=self._options.prefix + line.conversation.id)
            async with self._turn(conversation.id):
                await self._conversation(conversation)
            self.report.contexts += 1
        except (LineFailed, Refused, GaveUp) as failure:
            self._failed(line, str(failure))
        finally:
            free.release()
        self._progress.reached(lines.position, self._figures())

    def _turn(self, context_id: str) -> "Turn":
        return Turn(self._under_way, context_id)

    def _failed(self, line: Line, reason: str) -> None:
        self.report.failed += 1
        if self.report.failed <= PROBLEMS_SHOWN_MAX:
            named = f" ({line.conversation.id})" if line.conversation is not None else ""
            self._progress.say(f"line {line.number}{named}: {reason}")
        elif self.report.failed == PROBLEMS_SHOWN_MAX + 1:
            self._progress.say("more lines failed; they are only counted from here on")

    def _figures(self) -> str:
        report = self.report
        failed = f", {report.failed:,} failed" if report.failed else ""
        return f"{report.contexts:,} contexts, {report.appended + report.present:,} messages{failed}"

    async def _conversation(self, conversation: Conversation) -> None:
        """Bring one context to what the line says: create it, skip what is there, append the rest."""
        path = context_path(conversation.id)
        messages = conversation.messages
        done = await self._prepare(path, conversation)
        if done:
            done = min(done, len(messages))
            await self._check_same(path, messages, done)
            self.report.present += done
        for first, bodies in batches(messages, done, self._options.batch):
            await self._append(path, conversation.id, first, bodies)

    async def _prepare(self, path: str, conversation: Conversation) -> int:
        """Create or configure the context; how many messages it holds."""
        config = {**conversation.config, **dict(self._options.config)}
        if isinstance(config.get("policy"), dict):
            # An export tells the generation of a named policy; a request names it only.
            config["policy"] = {name: value for name, value in config["policy"].items() if name in ("strategy", "config", "ref")}
        found = await self._client.call("GET", path, missing_ok=True)
        if found.status == 404:
            found = await self._client.call("PUT", path, body=msgspec.json.encode(config))
        elif found.body["status"] != "active":
            # A PUT would revive it, which nobody asked for.
            raise LineFailed("The context was deleted. Purge it first (DELETE with ?purge=true), or import under another --prefix.")
        elif config:
            found = await self._client.call("PUT", path, body=msgspec.json.encode(config))
        return int(found.body["last_seq"])

    async def _check_same(self, path: str, messages: list[dict[str, Any]], count: int) -> None:
        """Whether the context's message `count` is the line's. One is enough: appends are in order and guarded by their place."""
        if not count:
            return
        page = await self._client.call("GET", f"{path}/messages?from_seq={count}&limit=1")
        stored = page.body["messages"][0]
        if not is_same(stored, messages[count - 1]):
            raise LineFailed(
                f"The context holds another conversation: its message {count} differs. "
                "Import under another --prefix, or purge the context first."
            )

    async def _append(self, path: str, context_id: str, first: int, bodies: list[bytes]) -> None:
        """Append `bodies` after the first `first` messages; in halves if the node takes only smaller requests."""
        body = b'{"if_seq":%d,"messages":[%b]}' % (first, b",".join(bodies))
        headers = {"Idempotency-Key": key_of(context_id, body)}
        try:
            await self._client.call("POST", f"{path}/messages", body=body, headers=headers)
        except Refused as refusal:
            if refusal.status == 413 and len(bodies) > 1:
                half = len(bodies) // 2
                await self._append(path, context_id, first, bodies[:half])
                await self._append(path, context_id, first + half, bodies[half:])
                return
            if refusal.code == "version_conflict":
                raise LineFailed("Somebody else appended to the context meanwhile. Run the import again to see what is there.") from refusal
            place = f"messages {first + 1} to {first + len(bodies)}: " if len(bodies) > 1 else f"message {first + 1}: "
            raise LineFailed(place + str(refusal)) from refusal
        self.report.appended += len(bodies)


class Turn:
    """Lets conversations of one id go one after the other, when a file names an id twice."""

    def __init__(self, under_way: dict[str, asyncio.Event], context_id: str) -> None:
        self._under_way = under_way
        self._id = context_id

    async def __aenter__(self) -> None:
        while (other := self._under_way.get(self._id)) is not None:
            await other.wait()
        self._under_way[self._id] = asyncio.Event()

    async def __aexit__(self, *_: object) -> None:
        self._under_way.pop(self._id).set()


def batches(messages: list[dict[str, Any]], done: int, count_max: int) -> Iterator[tuple[int, list[bytes]]]:
    """What follows the first `done` messages, in batches bounded by count and bytes: how many come before, and the messages as JSON."""
    batch: list[bytes] = []
    size, first = 0, done
    for message in messages[done:]:
        body = msgspec.json.encode(message)
        if batch and (len(batch) == count_max or size + len(body) > BATCH_BYTES_MAX):
            yield first, batch
            first, batch, size = first + len(batch), [], 0
        batch.append(body)
        size += len(body)
    if batch:
        yield first, batch


def key_of(context_id: str, body: bytes) -> str:
    """The same batch of the same context has the same key in every run; `body` holds its place."""
    return "import-" + blake2b(context_id.encode() + b"\0" + body, digest_size=20).hexdigest()


def is_same(stored: dict[str, Any], given: dict[str, Any]) -> bool:
    """Whether a stored message is the one that a file gives, in native or OpenAI form."""
    if stored["role"] != given.get("role"):
        return False
    if given.get("id") is not None and given["id"] != stored.get("id"):
        return False
    parts = given.get("parts")
    if parts is None:
        try:
            parts = parts_of(
                role=str(given.get("role")),
                content=given.get("content"),
                tool_calls=given.get("tool_calls"),
                tool_call_id=given.get("tool_call_id"),
                refusal=given.get("refusal"),
                audio=given.get("audio"),
                field="message",
            )
        except (InvalidRequest, TypeError, AttributeError):
            return False
    return bool(stored["parts"] == parts)
