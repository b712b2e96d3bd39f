"""The values that go in and out of a state database.

Knows: the columns. Does not know: what a record, a body or a reply says; they come packed from `contexts/` and go back so.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

SEQ_BITS: Final = 32
"""A message's place is `ordinal << SEQ_BITS | seq`: the messages of a context stand together, in order."""

ORDINAL_MAX: Final = (1 << 31) - 1
SEQ_MAX: Final = (1 << SEQ_BITS) - 1


@dataclass(frozen=True, slots=True)
class Applied:
    """How far a database is: everything up to log entry `index` of `term` is in it, and nothing after.

    `conf_state`: the Raft configuration at that index, packed. `clock_ms`: the shard's command time, Unix milliseconds.
    `machine`: what else the state machine keeps, packed. `next_ordinal`: the ordinal of the next context created.
    """

    index: int
    term: int
    conf_state: bytes
    clock_ms: int
    machine: bytes = b""
    next_ordinal: int = 1


NOTHING_APPLIED: Final = Applied(0, 0, b"", 0)


class ContextRow(NamedTuple):
    """A context. `ordinal` in [1, ORDINAL_MAX] is never used again; times are Unix milliseconds; `metadata` is JSON."""

    ordinal: int
    id: str
    status: int
    created_at: int
    updated_at: int
    metadata: str
    record: bytes


class KeyRow(NamedTuple):
    """An idempotency key: its number within the context, when it was used (ms), the request's digest and the reply."""

    number: int
    at: int
    digest: bytes
    reply: bytes


class PolicyRow(NamedTuple):
    """The shard's copy of a named policy; `deleted` is 0 or 1."""

    name: str
    generation: int
    deleted: int
    record: bytes


@dataclass(slots=True)
class StateChanges:
    """What one flush writes, as rows ready to bind. Everything is in one transaction with `applied`.

    Order: deleted contexts, `trimmed`, then all rows (an existing row of the same key is replaced), then `keys_below`.
    - `contexts`: `ContextRow` or plain tuples of its columns. `deleted_contexts`: ordinals; all their rows go.
    - `trimmed`: (first, last) places, both included, whose messages go. `messages`: (place, body, info).
    - `message_ids`: (ordinal, id, seq, version, estimate, digest).
    - `keys`: (ordinal, key, number, at, digest, reply). `keys_below`: (ordinal, number, at): keys with a lower number
      or an earlier time go; times must not descend with numbers.
    - `rewrites`: (ordinal, version, record). `policies`: as `PolicyRow`. `deleted_policies`: names.
    """

    applied: Applied
    contexts: list[tuple[int, str, int, int, int, str, bytes]] = field(default_factory=list)
    deleted_contexts: list[int] = field(default_factory=list)
    trimmed: list[tuple[int, int]] = field(default_factory=list)
    messages: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    message_ids: list[tuple[int, str, int, int, int, bytes]] = field(default_factory=list)
    keys: list[tuple[int, str, int, int, bytes, bytes]] = field(default_factory=list)
    keys_below: list[tuple[int, int, int]] = field(default_factory=list)
    rewrites: list[tuple[int, int, bytes]] = field(default_factory=list)
    policies: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    deleted_policies: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """`complete`: everything up to `applied_index` is fsynced, so the log below it may go; else try again later."""

    complete: bool
    applied_index: int


@dataclass(frozen=True, slots=True)
class StateCounts:
    """`contexts` by status; `file_bytes` of the database, free pages included."""

    contexts: dict[int, int]
    file_bytes: int


def place(ordinal: int, seq: int) -> int:
    """Where a message stands. Raises `ValueError` outside [1, ORDINAL_MAX] and [0, SEQ_MAX]."""
    if not (0 < ordinal <= ORDINAL_MAX and 0 <= seq <= SEQ_MAX):
        raise ValueError(f"no place for message {seq} of context {ordinal}")
    return ordinal << SEQ_BITS | seq
