"""The items of a window: messages as they came, messages with parts left out, summaries, and markers for calls without a result.

Knows how an item's JSON is made. Knows nothing of the order of items or of budgets. Invariants: an item never changes once it stands in a
window (an edit makes a new item), and `tokens` is its part costs plus its overhead.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from context_node.contexts.parts import CALL, CALL_AND_RESULT, OUTPUT_FIELDS, REASONING, RESULT, Mark

LIVE, SUMMARY, MARKER = range(3)
"""A message of the history; an item that a rewrite put in place of others; the stand-in for a result that never came."""

HEAD_ROLES = frozenset({"system", "developer"})

MESSAGE_OVERHEAD_TOKENS = 4
"""What a message costs besides its parts (role and separators)."""

PLACEHOLDER_TEXT = "[old tool result cleared]"
PLACEHOLDER_TOKENS = 72
"""The cost of a cleared result, revision 1. The compact JSON of a result with `PLACEHOLDER_TEXT` and an id of OpenAI, Anthropic,
vLLM or a UUID stays below it in o200k_base and cl100k_base, also in the AI SDK's longer form (measured: at most 64)."""

MARKER_TEXT = "[no result was received for this call]"
MARKER_TOKENS = 64
"""The cost of a marker result with its message overhead, revision 1 (measured over the same ids: at most 54 + 4)."""

_json = msgspec.json.Encoder()


_LINKING = frozenset({CALL, RESULT, CALL_AND_RESULT, REASONING})


class Item(msgspec.Struct, frozen=True, gc=False, eq=False):
    """One item of a window. Made by the functions below, which keep the derived fields right; compared by identity.

    `seq` is the message's place in history (for a summary the first seq that it covers, 0 if it covers none; for a marker
    the seq of its call) and `to_seq` the last that it stands for; `body` is its JSON object and `original` that object as
    it stands in history; `skipped` and `cleared` are positions of parts; `counts` are part costs that a recount put in
    place of the first ones; `origin` of a summary names the rewrite (version) and its place in it; `call_id` is a marker's.
    `is_plain` tells that no part can link it to another item, `is_head_alone` that it is head for its own sake and not for
    its unit's (W3); a summary of a whole replacement may be a system message.
    """

    kind: int
    seq: int
    role: str
    body: bytes
    tokens: int
    marks: tuple[Mark, ...]
    to_seq: int
    original: bytes
    is_plain: bool
    is_head_alone: bool
    pinned: bool = False
    skipped: tuple[int, ...] = ()
    cleared: tuple[int, ...] = ()
    counts: tuple[int, ...] | None = None
    origin: tuple[int, int] = (0, 0)
    call_id: str = ""

    def is_edited(self) -> bool:
        """Whether a live item differs from the message in history, so that its place in the record must say how."""
        return bool(self.pinned or self.skipped or self.cleared or self.counts is not None)

    def active_marks(self) -> Iterable[tuple[int, Mark]]:
        """The marks of the parts that are still in the item, with their positions."""
        if not self.skipped:
            return enumerate(self.marks)
        return ((place, mark) for place, mark in enumerate(self.marks) if place not in self.skipped)

    def has_links(self) -> bool:
        """Whether a call or a result is in it."""
        return not self.is_plain and any(mark.kind in (CALL, RESULT, CALL_AND_RESULT) for _, mark in self.active_marks())

    def is_reasoning_alone(self) -> bool:
        return not self.is_plain and all(mark.kind == REASONING for _, mark in self.active_marks())

    def is_results_alone(self) -> bool:
        return not self.is_plain and all(mark.kind == RESULT for _, mark in self.active_marks())


def _is_plain(marks: tuple[Mark, ...]) -> bool:
    for mark in marks:  # noqa: SIM110 - a loop costs half of any() here, on every append
        if mark.kind in _LINKING:
            return False
    return True


class Info(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is stored beside a message's body so that a window can be read back without parsing bodies. `version` is the context's
    version after the append that brought it."""

    role: str
    tokens: int
    marks: tuple[Mark, ...]
    version: int


info_encoder = msgspec.msgpack.Encoder()
info_decoder = msgspec.msgpack.Decoder(Info)


def timestamp(at_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds and `Z`, of milliseconds since the Unix epoch."""
    second, millisecond = divmod(at_ms, 1000)
    return _second_text(second) + _MILLISECONDS[millisecond]


@lru_cache(maxsize=16)
def _second_text(second: int) -> str:
    # strftime costs more than all else that is done to append a message, and most messages share their second.
    return datetime.fromtimestamp(second, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")


_MILLISECONDS = tuple(f".{millisecond:03d}Z" for millisecond in range(1000))


def live_item(seq: int, body: bytes, info: Info, pinned: bool = False) -> Item:
    """The item of a message as it came."""
    role, marks = info.role, info.marks
    is_head = pinned or role in HEAD_ROLES
    return Item(LIVE, seq, role, body, info.tokens, marks, seq, body, _is_plain(marks), is_head, pinned)


def edited(
    item: Item,
    *,
    skipped: Iterable[int] = (),
    cleared: Iterable[int] = (),
    counts: tuple[int, ...] | None = None,
    pinned: bool | None = None,
) -> Item:
    """A copy of a live item with the parts at `skipped` left out and the results at `cleared` replaced by a placeholder,
    besides those that already are. `counts` are new part costs, by position. The outcome follows from the message in
    history and the sums of all edits, whatever their order: a record holds those sums."""
    skip = tuple(sorted({*item.skipped, *skipped}))
    clear = tuple(sorted({*item.cleared, *cleared} - set(skip)))
    new_counts = item.counts if counts is None else counts
    pin = item.pinned if pinned is None else pinned
    is_head = pin or item.role in HEAD_ROLES
    if (skip, clear, new_counts) == (item.skipped, item.cleared, item.counts):
        return msgspec.structs.replace(item, pinned=pin, is_head_alone=is_head)
    marks = item.marks if counts is None else recounted(item.marks, counts)
    full = msgspec.json.decode(item.original)
    # A client's own token_count is spread over the parts whole; only the server's count has an overhead.
    overhead = MESSAGE_OVERHEAD_TOKENS
    if new_counts is None:
        overhead = full["token_count"] - sum(mark.tokens for mark in item.marks)
    tokens = overhead + sum(cost(mark, place in clear) for place, mark in enumerate(marks) if place not in skip)
    return Item(
        LIVE,
        item.seq,
        item.role,
        _edited_body(full, skip, clear, tokens),
        tokens,
        marks,
        item.seq,
        item.original,
        _is_plain(tuple(mark for place, mark in enumerate(marks) if place not in skip)),
        is_head,
        pin,
        skip,
        clear,
        new_counts,
    )


def recounted(marks: Sequence[Mark], counts: Sequence[int]) -> tuple[Mark, ...]:
    """The marks with new costs; the share of an output keeps its proportion."""
    return tuple(
        msgspec.structs.replace(mark, tokens=count, output_tokens=mark.output_tokens * count // max(1, mark.tokens))
        for mark, count in zip(marks, counts, strict=True)
    )


def cost(mark: Mark, is_cleared: bool) -> int:
    """What a part costs, as it came or with its result cleared."""
    if not is_cleared:
        return mark.tokens
    if mark.kind == CALL_AND_RESULT:
        return mark.tokens - mark.output_tokens + PLACEHOLDER_TOKENS
    return PLACEHOLDER_TOKENS


def _edited_body(full: dict[str, Any], skip: tuple[int, ...], clear: tuple[int, ...], tokens: int) -> bytes:
    parts = []
    for place, part in enumerate(full["parts"]):
        if place in skip:
            continue
        parts.append(_with_placeholder(part) if place in clear else part)
    return _json.encode({**full, "parts": parts, "token_count": tokens})


def _with_placeholder(part: dict[str, Any]) -> dict[str, Any]:
    name = next((field for field in OUTPUT_FIELDS if field in part), "output")
    typed = part["type"] == "tool-result" and isinstance(part.get(name), dict)
    return {**part, name: {"type": "text", "value": PLACEHOLDER_TEXT} if typed else PLACEHOLDER_TEXT}


def marker_item(call_seq: int, call_id: str) -> Item:
    """The stand-in for the result of the call `call_id` in message `call_seq`, so that providers accept what follows (W2)."""
    part = {"type": "tool_result", "tool_call_id": call_id, "output": MARKER_TEXT}
    fields = {"seq": None, "role": "tool", "parts": [part], "metadata": {"marker": True}, "token_count": MARKER_TOKENS}
    mark = Mark(RESULT, "tool_result", MARKER_TOKENS - MESSAGE_OVERHEAD_TOKENS, call_id)
    body = _json.encode(fields)
    return Item(MARKER, call_seq, "tool", body, MARKER_TOKENS, (mark,), call_seq, body, False, False, call_id=call_id)


def summary_item(
    covers: tuple[int, int],
    draft_fields: bytes,
    role: str,
    tokens: int,
    marks: tuple[Mark, ...],
    origin: tuple[int, int],
) -> Item:
    """An item that a rewrite puts in place of the messages `covers` (inclusive; (0, 0) for none). `origin` is (version of
    the rewrite, place in it)."""
    body = b'{"seq":null,"covers":[%d,%d],%b}' % (*covers, draft_fields)
    return stored_summary(covers, body, role, tokens, marks, origin)


def stored_summary(covers: tuple[int, int], body: bytes, role: str, tokens: int, marks: tuple[Mark, ...], origin: tuple[int, int]) -> Item:
    """A summary from what a record holds of it."""
    is_head = role in HEAD_ROLES
    first, last = covers
    return Item(SUMMARY, first, role, body, tokens, marks, last, body, _is_plain(marks), is_head, origin=origin)


def recounted_summary(item: Item, counts: tuple[int, ...]) -> Item:
    """A summary with new part costs."""
    tokens = MESSAGE_OVERHEAD_TOKENS + sum(counts)
    body = _json.encode({**msgspec.json.decode(item.body), "token_count": tokens})
    return stored_summary((item.seq, item.to_seq), body, item.role, tokens, recounted(item.marks, counts), item.origin)
