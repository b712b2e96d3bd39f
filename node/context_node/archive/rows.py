"""What a row of the archive is made of.

Knows which parts of a message and of a context have a column of their own, and what goes along for nodes only (`node_data`), so that a
message can come back into a window, and a context into another cluster, as it was. Does not know SQL.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from context_node.contexts.context import Context, IdRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BETWEEN, _BETWEEN_RAW = "\x1e", b"\x1e"
"""Between the values of a joined column: no JSON text holds it unescaped (RFC 8259, section 7), nor does a role."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Told(msgspec.Struct, frozen=True, gc=False):
    """What of a message's JSON has a column of its own, and its id."""

    role: str
    token_count: int
    inserted_at: datetime
    id: str | None = None


class MessageData(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What nodes keep of a message besides its JSON: its stored info, and what its id remembers if it has one."""

    info: bytes
    id: IdRow | None = None


class ArchivedMessage(msgspec.Struct, frozen=True, gc=False):
    """One row: `raw` is the message's JSON as it is in the history, `node_data` a `MessageData`."""

    context_id: str
    incarnation: int
    seq: int
    raw: bytes
    told: Told
    node_data: bytes


class ArchivedContext(msgspec.Struct, frozen=True, gc=False):
    """A context as of `revision`: with this batch all its messages up to `seq` are there, and those up to `held` were before. `metadata` is
    JSON, `record` what nodes store of it."""

    context_id: str
    incarnation: int
    seq: int
    held: int
    revision: int
    status: str
    metadata: bytes
    created_at_ms: int
    updated_at_ms: int
    record: bytes


told_of = msgspec.json.Decoder(Told).decode
_encode = msgspec.msgpack.Encoder().encode
message_data = msgspec.msgpack.Decoder(MessageData).decode


def message_row(context_id: str, incarnation: int, seq: int, raw: bytes, info: bytes, told: Told, id_row: IdRow | None) -> ArchivedMessage:
    """A message as a row."""
    return ArchivedMessage(context_id, incarnation, seq, raw, told, _encode(MessageData(info, id_row)))


def context_row(context: Context, seq: int, held: int) -> ArchivedContext:
    """A context as it is now, with its messages up to `seq`, of which the archive has those up to `held`."""
    head = context.head
    return ArchivedContext(
        context.id,
        head.incarnation,
        seq,
        held,
        head.revision,
        context.status,
        head.metadata,
        head.created_at_ms,
        head.updated_at_ms,
        context.record(),
    )


def message_columns(messages: Sequence[ArchivedMessage]) -> tuple[list[Any], ...]:
    """In the order that `schema.PUT_MESSAGES` takes."""
    return (
        [one.context_id for one in messages],
        [one.incarnation for one in messages],
        [one.seq for one in messages],
        [one.told.role for one in messages],
        [one.told.token_count for one in messages],
        [one.told.inserted_at for one in messages],
        [one.raw.decode() for one in messages],
        [fits_jsonb(one.raw) for one in messages],
        [one.node_data for one in messages],
    )


def joined_columns(messages: Sequence[ArchivedMessage], contexts: Sequence[ArchivedContext]) -> tuple[list[Any], ...] | None:
    """In the order that `schema.ADD_BATCH` takes: for each context the seq before its first message, and what its messages have in each
    column as one text; last a byte for each, 1 if jsonb cannot hold it, or None if it can hold all. None for messages that are not in the
    order of the contexts, each context's without a gap up to its mark, or of which a text does not tell one value from the next."""
    columns: tuple[list[Any], ...] = ([], [], [], [], [], [], [])
    befores, raws, roles, tokens, times, data, unfit = columns
    at = 0
    for context in contexts:
        part = _next_of(context, messages, at)
        if part is None:
            return None
        at += len(part)
        raw = _BETWEEN_RAW.join([one.raw for one in part])
        told = [one.told for one in part]
        role = _BETWEEN.join([one.role for one in told])
        if part and not (role and raw.count(_BETWEEN_RAW) == role.count(_BETWEEN) == len(part) - 1):
            return None
        befores.append(context.seq - len(part))
        raws.append(raw.decode())
        roles.append(role)
        tokens.append(_BETWEEN.join([str(one.token_count) for one in told]))
        times.append(_BETWEEN.join([str((one.inserted_at - _EPOCH) // _MICROSECOND) for one in told]))
        data.append(_BETWEEN.join([one.node_data.hex() for one in part]))
        unfit.append(None if fits_jsonb(raw) else bytes([not fits_jsonb(one.raw) for one in part]))
    return columns if at == len(messages) else None


def _next_of(context: ArchivedContext, messages: Sequence[ArchivedMessage], at: int) -> Sequence[ArchivedMessage] | None:
    """The messages from `at` on that lead without a gap to a context's mark; empty if the next one is another's."""
    if at == len(messages) or messages[at].context_id != context.context_id:
        return ()
    part = messages[at : at + context.seq + 1 - messages[at].seq]
    is_whole = part and [one.seq for one in part] == list(range(part[0].seq, context.seq + 1))
    is_own = {one.context_id for one in part} == {context.context_id} and {one.incarnation for one in part} == {context.incarnation}
    return part if is_whole and is_own else None


def held_columns(contexts: Sequence[ArchivedContext]) -> tuple[list[str], list[int], list[int]]:
    """In the order that `schema.LESS_THAN` takes."""
    return [one.context_id for one in contexts], [one.incarnation for one in contexts], [one.held for one in contexts]


def context_columns(contexts: Sequence[ArchivedContext], shard: int) -> tuple[Any, ...]:
    """In the order that `schema.PUT_CONTEXTS` takes."""
    return (
        [one.context_id for one in contexts],
        [one.incarnation for one in contexts],
        [one.seq for one in contexts],
        [one.revision for one in contexts],
        [one.status for one in contexts],
        [one.metadata.decode() for one in contexts],
        [fits_jsonb(one.metadata) for one in contexts],
        [_EPOCH + timedelta(milliseconds=one.created_at_ms) for one in contexts],
        [_EPOCH + timedelta(milliseconds=one.updated_at_ms) for one in contexts],
        shard,
        [one.record for one in contexts],
    )


def fits_jsonb(raw: bytes) -> bool:
    """Whether jsonb can hold a JSON text: it knows no U+0000 (PostgreSQL, "JSON Types"). Lone surrogates, which it does not know
    either, are refused at the edge already."""
    return b"\\u0000" not in raw or _NUL.search(raw) is None
