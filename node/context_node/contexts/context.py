"""One context: its configuration, counters and window, and how they are stored.

Knows what a context's record holds and how a window is read back from it and the messages it names. Knows nothing of where records are
kept. Invariants: `record()` and `read_context` are inverse; equal contexts have equal records, byte for byte (W5).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from context_node.contexts.commands import PolicySpec
from context_node.contexts.compaction import Plan
from context_node.contexts.items import (
    LIVE,
    MARKER,
    Info,
    Item,
    edited,
    info_decoder,
    live_item,
    marker_item,
    stored_summary,
)
from context_node.contexts.parts import Mark
from context_node.contexts.replies import Reply
from context_node.contexts.window import Window

ACTIVE, TOMBSTONED, RESTORING = 0, 1, 2
"""What a context is. One that is restored takes nothing but more of its messages, and becomes what it was when all are there."""

Status = Literal["active", "tombstoned", "restoring"]
STATUSES: tuple[Status, ...] = ("active", "tombstoned", "restoring")

Place = list[Any]
"""One entry of a window's record: `[0, from, to]` for messages as they came, `[1, seq, pinned, skipped, cleared, counts]` for
a message that is pinned or edited, `[2, from, to, body, role, tokens, marks, origin]` for a summary, `[3, seq, call_id]` for
a marker."""

RUN, SPECIAL, SUMMED, MARKED = range(4)


class Config(msgspec.Struct, frozen=True, array_like=True):
    """What was resolved when the context was made, or set since. `target_ratio` None means: derived from the trigger."""

    token_budget: int
    trigger_ratio: float
    target_ratio: float | None
    policy: PolicySpec
    tokenizer: str


def derived_target(trigger_ratio: float) -> float:
    """The target that goes with a trigger if none was given: min(0.5, trigger * 5/7)."""
    return min(0.5, trigger_ratio * 5 / 7)


class Head(msgspec.Struct, array_like=True):
    """The part of a record that is read without the window (lists need no more). `key_number` is that of the newest idempotency
    key; keys below `keys_from` or from before `keys_since_ms` are forgotten for good, whatever the settings become. The archive has
    messages up to `archived_seq` and the record of `archived_revision`, if `archive_epoch` is the shard's: else it is another archive
    (`archived_upto`). Messages up to `trimmed_seq` are there only, but for those that the window holds."""

    status: int
    incarnation: int
    config: Config
    metadata: bytes
    version: int
    revision: int
    last_seq: int
    archived_seq: int
    created_at_ms: int
    updated_at_ms: int
    tombstoned_at_ms: int | None
    used_tokens: int
    key_number: int
    policy_generation: int
    keys_from: int = 1
    keys_since_ms: int = 0
    archived_revision: int = 0
    trimmed_seq: int = 0
    archive_epoch: int = 0


class WindowRecord(msgspec.Struct, array_like=True):
    """The window in a record. `rewritten` lists (version, from_seq, to_seq) of ranges that a hand changed, newest last; those
    before `rewritten_floor` are forgotten."""

    places: list[Place]
    rewritten_seq: int
    stable_count: int
    forced: bool
    rewritten: list[tuple[int, int, int]]
    rewritten_floor: int


class Record(msgspec.Struct, array_like=True):
    head: Head
    window: msgspec.Raw


_encode = msgspec.msgpack.Encoder().encode
_records = msgspec.msgpack.Decoder(Record)
_windows = msgspec.msgpack.Decoder(WindowRecord)

MessageRow = tuple[int, bytes, bytes]
"""A message on its way to the database: where it goes there (`changes.rowid`), its body, its stored info."""

REWRITTEN_MAX = 256
"""So many hand-made changes are remembered by range; an older `if_version` is a conflict."""


class KeyRow(msgspec.Struct, frozen=True, array_like=True):
    """What a key remembers: its number in the context, when it came, the request's digest and the reply."""

    number: int
    at_ms: int
    digest: bytes
    reply: Reply


class IdRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a message id remembers, for ever: where it went, and what was answered."""

    seq: int
    version: int
    estimate: int
    digest: bytes


@dataclass(slots=True, eq=False)
class Context:
    """A context in memory. `fresh_ids`, `fresh_keys` and `tail` hold what is applied but not yet in the database."""

    id: str
    ordinal: int
    head: Head
    window: Window
    rewritten: list[tuple[int, int, int]] = field(default_factory=list)
    rewritten_floor: int = 0
    places: list[Place] | None = None
    fresh_ids: dict[str, IdRow] = field(default_factory=dict)
    fresh_keys: dict[str, KeyRow] = field(default_factory=dict)
    tail: list[MessageRow] = field(default_factory=list)
    rendered: Any = None
    plan: Plan | None = None
    is_recent: bool = True

    @property
    def status(self) -> Status:
        return STATUSES[self.head.status]

    @property
    def tail_from(self) -> int:
        """The seq of the first message in `tail`; `last_seq + 1` if it is empty."""
        return self.head.last_seq - len(self.tail) + 1

    @property
    def cold_seq(self) -> int:
        """Messages up to here have to be read from the archive."""
        return min(self.head.trimmed_seq, self.head.last_seq - len(self.tail))

    def held_ranges(self, upto: int) -> list[tuple[int, int]]:
        """The messages up to seq `upto` that the window holds, as ascending ranges (inclusive)."""
        return [(first, min(last, upto)) for first, last in held_ranges(self.window_places()) if first <= upto]

    def target_ratio(self) -> float:
        config = self.head.config
        return derived_target(config.trigger_ratio) if config.target_ratio is None else config.target_ratio

    def mark_rewritten(self, version: int, from_seq: int, to_seq: int) -> None:
        """Remember that a hand changed this range at this version."""
        self.rewritten.append((version, from_seq, to_seq))
        if len(self.rewritten) > REWRITTEN_MAX:
            self.rewritten_floor = self.rewritten.pop(0)[0]

    def was_rewritten_since(self, version: int, from_seq: int, to_seq: int) -> bool:
        """Whether a hand changed an item of the range after `version`; True also where that is forgotten."""
        if version < self.rewritten_floor:
            return True
        return any(at > version and first <= to_seq and last >= from_seq for at, first, last in self.rewritten)

    def note_joined(self, count_before: int) -> None:
        """Keep `places` in step after items joined at the end, so that a record costs nothing per item between rewrites."""
        if self.places is None:
            return
        for item in self.window.items[count_before:]:
            _extend(self.places, item)

    def window_places(self) -> list[Place]:
        """The window's entries, kept until the next rewrite."""
        if self.places is None:
            self.places = []
            for item in self.window.items:
                _extend(self.places, item)
        return self.places

    def record(self) -> bytes:
        """The bytes to store."""
        self.head.used_tokens = self.window.tokens
        window = self.window
        stored = WindowRecord(
            self.window_places(),
            window.rewritten_seq,
            window.stable_count,
            window.forced,
            self.rewritten,
            self.rewritten_floor,
        )
        return _encode(Record(self.head, msgspec.Raw(_encode(stored))))


def archived_upto(head: Head, archive_epoch: int) -> int:
    """Up to where the archive that the shard uses now has confirmed a context's messages."""
    return head.archived_seq if head.archive_epoch == archive_epoch else 0


def read_head(record: bytes) -> Head:
    """The configuration and counters in a record."""
    return _records.decode(record).head


def read_record(record: bytes) -> tuple[Head, WindowRecord]:
    """All of a record. Raises `msgspec.MsgspecError`."""
    stored = _records.decode(record)
    return stored.head, _windows.decode(stored.window)


Rows = Callable[[list[tuple[int, int]]], Iterable[tuple[int, bytes, bytes]]]
"""Reads messages by ranges of seq (inclusive, ascending): gives (seq, body, info)."""


def read_context(context_id: str, ordinal: int, record: bytes, rows: Rows) -> Context:
    """A context as it was stored. Reads from `rows` just the messages that its window holds."""
    stored = _records.decode(record)
    window = _windows.decode(stored.window)
    messages = {seq: (body, info_decoder.decode(info)) for seq, body, info in rows(held_ranges(window.places))}
    context = Context(
        context_id,
        ordinal,
        stored.head,
        Window(rewritten_seq=window.rewritten_seq, stable_count=window.stable_count, forced=window.forced),
        window.rewritten,
        window.rewritten_floor,
        places=window.places,
    )
    context.window.replace_items(restore_items(window.places, messages))
    return context


def held_ranges(places: Sequence[Place]) -> list[tuple[int, int]]:
    """The messages that a window's entries name, as ascending ranges (inclusive)."""
    wanted = [(place[1], place[2]) if place[0] == RUN else (place[1], place[1]) for place in places if place[0] in (RUN, SPECIAL)]
    merged: list[tuple[int, int]] = []
    for first, last in sorted(wanted):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def restore_items(places: Sequence[Place], messages: Mapping[int, tuple[bytes, Info]]) -> list[Item]:
    """The items that a window's entries stand for, given the messages that they name."""
    items: list[Item] = []
    for place in places:
        if place[0] == RUN:
            items.extend(live_item(seq, *messages[seq]) for seq in range(place[1], place[2] + 1))
        elif place[0] == SPECIAL:
            _, seq, pinned, skipped, cleared, counts = place
            item = live_item(seq, *messages[seq])
            new_counts = None if counts is None else tuple(counts)
            items.append(edited(item, skipped=skipped, cleared=cleared, counts=new_counts, pinned=pinned))
        elif place[0] == SUMMED:
            items.append(_summary(place))
        else:
            items.append(marker_item(place[1], place[2]))
    return items


def _summary(place: Place) -> Item:
    _, from_seq, to_seq, body, role, tokens, marks, origin = place
    decoded = msgspec.convert(marks, tuple[Mark, ...])
    return stored_summary((from_seq, to_seq), body, role, tokens, decoded, tuple(origin))


def _extend(places: list[Place], item: Item) -> None:
    if item.kind == LIVE:
        if item.is_edited():
            counts = None if item.counts is None else list(item.counts)
            places.append([SPECIAL, item.seq, item.pinned, list(item.skipped), list(item.cleared), counts])
        elif places and places[-1][0] == RUN and places[-1][2] == item.seq - 1:
            places[-1][2] = item.seq
        else:
            places.append([RUN, item.seq, item.seq])
    elif item.kind == MARKER:
        places.append([MARKED, item.seq, item.call_id])
    else:
        marks = [msgspec.structs.astuple(mark) for mark in item.marks]
        places.append([SUMMED, item.seq, item.to_seq, item.body, item.role, item.tokens, marks, list(item.origin)])


class RewriteRecord(msgspec.Struct, frozen=True, array_like=True):
    """A window after a rewrite, for `at_version`: its entries, where a summary that an earlier rewrite brought is named by
    that rewrite's version and its place in it."""

    last_seq: int
    places: list[Any]


def rewrite_record(context: Context) -> bytes:
    """The window as it stands, just after a rewrite gave the context its version."""
    version = context.head.version
    places = [
        place if place[0] != SUMMED or place[7][0] == version else [SUMMED, place[1], place[2], None, None, 0, [], place[7]]
        for place in context.window_places()
    ]
    return _encode(RewriteRecord(context.head.last_seq, places))
