"""What comes from an archive, checked before anything is built on it: messages, and the stored record of a context.

Knows the shapes that `context` and `machine` write. An archive is a database that people can reach, so nothing in it is trusted (S1).
Invariants: what passes here can be stored, read back and rendered by every replica; what does not is refused, whatever it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from context_node.contexts.changes import SEQ_MASK
from context_node.contexts.commands import RestoredMessage
from context_node.contexts.context import ACTIVE, TOMBSTONED, Config, Head, WindowRecord, derived_target, read_record
from context_node.contexts.items import Info, info_decoder
from context_node.contexts.parts import Mark
from context_node.contexts.refusals import Unprocessable

NUMBER_MAX: Final = 2**53 - 1
"""Versions, tokens and the like: what every reader of JSON and every database keeps exactly."""

TIME_MAX_MS: Final = 253_402_300_799_999
"""The end of the year 9999: no RFC 3339 timestamp is later."""

TOKEN_BUDGET_MAX: Final = 10_000_000
MESSAGE_TOKENS_MAX: Final = 100_000_000_000
"""Of one message. None that came by HTTP has so many (ten million a part), and the sum over a window fits 63 bits."""

WINDOW_ITEMS_MAX: Final = 1_000_000

DEPTH_MAX: Final = 128
"""Deepest nesting of JSON, in levels of objects and arrays: twice what a request may have, and far from where a decoder's own limit, which
is not the same at every replica, begins."""

MALFORMED: Final = (msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading a value of a wrong shape may raise."""


class _Part(msgspec.Struct):
    type: str


class _Body(msgspec.Struct):
    """What each message's JSON has."""

    seq: int
    role: str
    parts: list[_Part]
    metadata: dict[str, Any]
    token_count: int
    inserted_at: datetime
    id: str | None = None


class _Run(msgspec.Struct, array_like=True, tag=0, forbid_unknown_fields=True):
    first: int
    last: int


class _Special(msgspec.Struct, array_like=True, tag=1, forbid_unknown_fields=True):
    seq: int
    pinned: bool
    skipped: list[int]
    cleared: list[int]
    counts: list[int] | None


class _Summed(msgspec.Struct, array_like=True, tag=2, forbid_unknown_fields=True):
    first: int
    last: int
    body: bytes
    role: str
    tokens: int
    marks: list[Mark]
    origin: tuple[int, int]


class _Marked(msgspec.Struct, array_like=True, tag=3, forbid_unknown_fields=True):
    seq: int
    call_id: str


_bodies = msgspec.json.Decoder(_Body)
_objects = msgspec.json.Decoder(dict[str, Any])
_places = msgspec.msgpack.Decoder(list[_Run | _Special | _Summed | _Marked])
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class StoredContext:
    """A record that holds together."""

    head: Head
    window: WindowRecord


def check_messages(first_seq: int, messages: Sequence[RestoredMessage]) -> None:
    """Whether messages are what the history can take from `first_seq` on. For the leader, before it proposes. Raises `Unprocessable`."""
    if not 1 <= first_seq <= SEQ_MASK - len(messages):
        raise Unprocessable(f"A history has no message {first_seq}.", field="first_seq")
    for seq, message in enumerate(messages, first_seq):
        try:
            body, info = _bodies.decode(message.body), info_decoder.decode(message.info)
            _check_depth(message.body)
            is_sound = _is_sound(seq, message, body, info)
        except MALFORMED:
            is_sound = False
        if not is_sound:
            raise Unprocessable(f"Message {seq} is not as a node archives it; it is damaged, or of another version.", seq=seq)


def _is_sound(seq: int, message: RestoredMessage, body: _Body, info: Info) -> bool:
    if (body.seq, body.role, body.token_count, len(body.parts)) != (seq, info.role, info.tokens, len(info.marks)):
        return False
    tokens = [info.tokens, *(number for mark in info.marks for number in (mark.tokens, mark.output_tokens))]
    if not all(0 <= number <= MESSAGE_TOKENS_MAX for number in tokens):
        return False
    numbers = [info.version]
    if message.id is not None:
        name, version, estimate, digest = message.id
        if name != body.id or len(digest) > 64:
            return False
        numbers += [version, estimate]
    return all(0 <= number <= NUMBER_MAX for number in numbers)


def parse_record(record: bytes) -> StoredContext:
    """A stored context. Raises `Unprocessable`; depends on the bytes alone."""
    try:
        head, window = read_record(record)
        problem = _head_problem(head) or _config_problem(head.config) or _window_problem(head, window)
    except MALFORMED:
        problem = "it cannot be read"
    if problem:
        raise Unprocessable(f"The record of this context is not as a node archives it: {problem}. It is damaged, or of another version.")
    return StoredContext(head, window)


def _head_problem(head: Head) -> str:
    if head.status not in (ACTIVE, TOMBSTONED):
        return "it was being restored itself when it was archived"
    if not all(0 <= at_ms <= TIME_MAX_MS for at_ms in (head.created_at_ms, head.updated_at_ms, head.tombstoned_at_ms or 0)):
        return "a time is out of range"
    if not (0 <= head.version <= NUMBER_MAX and 1 <= head.revision <= NUMBER_MAX and 0 <= head.policy_generation <= NUMBER_MAX):
        return "a counter is out of range"
    if not 0 <= head.last_seq < SEQ_MASK:
        return "last_seq is out of range"
    _check_object(head.metadata)
    return ""


def _config_problem(config: Config) -> str:
    target = derived_target(config.trigger_ratio) if config.target_ratio is None else config.target_ratio
    if not 1 <= config.token_budget <= TOKEN_BUDGET_MAX or not 0 < target < config.trigger_ratio <= 1:
        return "a setting is out of range"
    _check_object(config.policy.config)
    return ""


def _window_problem(head: Head, window: WindowRecord) -> str:
    last_seq = head.last_seq
    numbers = [window.rewritten_floor, *(number for rewritten in window.rewritten for number in rewritten)]
    count = 0
    for place in _places.decode(_encode(window.places)):
        if isinstance(place, _Run):
            if not 1 <= place.first <= place.last <= last_seq:
                return "the window names messages that are not there"
            count += place.last - place.first
        elif isinstance(place, _Summed):
            if not (0 <= place.first <= place.last <= last_seq and 0 <= place.tokens <= MESSAGE_TOKENS_MAX):
                return "a summary is out of range"
            _check_object(place.body)
            numbers += [*place.origin, *(number for mark in place.marks for number in (mark.tokens, mark.output_tokens))]
        elif not 1 <= place.seq <= last_seq:
            return "the window names messages that are not there"
        elif isinstance(place, _Special):
            numbers += [*place.skipped, *place.cleared, *(place.counts or ())]
        count += 1
    if count > WINDOW_ITEMS_MAX:
        return "the window holds too much"
    if not (0 <= window.stable_count <= count and 0 <= window.rewritten_seq <= last_seq):
        return "the stable part of the window is out of range"
    # `rewritten` holds what clients asked for, which ends at last_seq; a range may begin at 0.
    return "" if all(0 <= number <= NUMBER_MAX for number in numbers) else "a number of the window is out of range"


def _check_object(data: bytes) -> None:
    """Raises one of `MALFORMED` for what is no JSON object."""
    _objects.decode(data)
    _check_depth(data)


def _check_depth(data: bytes) -> None:
    if data.count(b"{") + data.count(b"[") <= DEPTH_MAX:
        return
    level: list[Any] = [msgspec.json.decode(data)]
    for _ in range(DEPTH_MAX + 1):
        level = [inner for one in level if isinstance(one, dict | list) for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return
    raise ValueError("nested too deep")
