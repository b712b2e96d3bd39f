"""The items of a window: messages as they came, messages with parts left out, summaries, and markers for calls without a result.

Knows how an item's JSON is made. Knows nothing of the order of items or of budgets. Invariants: an item never changes once it stands in
a window (an edit makes a new item), and `tokens` is its part costs plus its overhead.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from context_node.contexts.parts import CALL, CALL_AND_RESULT, OUTPUT_FIELDS, REASONING, RESULT, Mark

LIVE, SUMMARY, MARKER = range(3)
"""A message of the history; an item that a rewrite put in place of others; the stand-in for a result that never came."""

HEAD_ROLES = frozenset({"system", "developer"})

MESSAGE_OVERHEAD_TOKENS = 4
"""What a message costs besides its parts (role and separators)."""

PLACEHOLDER_TEXT = "[old tool result cleared]"
PLACEHOLDER_TOKENS = 48
"""The cost of a cleared result, revision 1: the compact JSON of a result with a long id and `PLACEHOLDER_TEXT` stays below it."""

MARKER_TEXT = "[no result was received for this call]"
MARKER_TOKENS = 56
"""The cost of a marker result with its message overhead, revision 1."""

_json = msgspec.json.Encoder()


class Item:
    """One item of a window.

    `seq` is the message's place in history (for a summary the first seq that it covers, for a marker the seq of its call); `body` is its
    JSON object and `original` that object as it stands in history; `skipped` and `cleared` are positions of parts; `counts` are part
    costs that a recount put in place of the first ones; `origin` of a summary names the rewrite (version) and its place in it.
    """

    __slots__ = (
        "body",
        "call_id",
        "cleared",
        "counts",
        "is_plain",
        "kind",
        "marks",
        "origin",
        "original",
        "pinned",
        "role",
        "seq",
        "skipped",
        "to_seq",
        "tokens",
    )

    def __init__(
        self,
        kind: int,
        seq: int,
        role: str,
        body: bytes,
        tokens: int,
        marks: tuple[Mark, ...],
        *,
        to_seq: int | None = None,
        pinned: bool = False,
        skipped: tuple[int, ...] = (),
        cleared: tuple[int, ...] = (),
        counts: tuple[int, ...] | None = None,
        origin: tuple[int, int] = (0, 0),
        call_id: str = "",
        original: bytes | None = None,
    ) -> None:
        self.kind = kind
        self.seq = seq
        self.to_seq = seq if to_seq is None else to_seq
        self.role = role
        self.body = body
        self.original = body if original is None else original
        self.tokens = tokens
        self.marks = marks
        self.pinned = pinned
        self.skipped = skipped
        self.cleared = cleared
        self.counts = counts
        self.origin = origin
        self.call_id = call_id
        self.is_plain = all(mark.kind not in _LINKING for mark in marks)

    @property
    def is_head_alone(self) -> bool:
        """Whether the item is head for its own sake, not for its unit's (W3). A summary of a whole replacement may be a system message."""
        return self.pinned or self.role in HEAD_ROLES

    @property
    def is_edited(self) -> bool:
        """Whether a live item differs from the message in history, so that its place in the record must say how."""
        return bool(self.pinned or self.skipped or self.cleared or self.counts is not None)

    def active_marks(self) -> Iterable[tuple[int, Mark]]:
        """The marks of the parts that are still in the item, with their positions."""
        if not self.skipped:
            return enumerate(self.marks)
        return ((place, mark) for place, mark in enumerate(self.marks) if place not in self.skipped)

    def has_results(self) -> bool:
        return not self.is_plain and any(mark.kind == RESULT for _, mark in self.active_marks())

    def has_calls(self) -> bool:
        return not self.is_plain and any(mark.kind in (CALL, CALL_AND_RESULT) for _, mark in self.active_marks())

    def is_reasoning_alone(self) -> bool:
        marks = [mark for _, mark in self.active_marks()]
        return bool(marks) and all(mark.kind == REASONING for mark in marks)

    def is_results_alone(self) -> bool:
        marks = [mark for _, mark in self.active_marks()]
        return bool(marks) and all(mark.kind == RESULT for mark in marks)


_LINKING = frozenset({CALL, RESULT, CALL_AND_RESULT, REASONING})


class Info(msgspec.Struct, frozen=True, array_like=True):
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
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def live_item(seq: int, body: bytes, info: Info) -> Item:
    """The item of a message as it came."""
    return Item(LIVE, seq, info.role, body, info.tokens, info.marks)


def edited(
    item: Item,
    *,
    skipped: Iterable[int] = (),
    cleared: Iterable[int] = (),
    counts: tuple[int, ...] | None = None,
    pinned: bool | None = None,
) -> Item:
    """A copy of a live item with the parts at `skipped` left out and the results at `cleared` replaced by a placeholder, besides those
    that already are. `original` is the body as it stands in history. `counts` are new part costs, by position."""
    skip = tuple(sorted({*item.skipped, *skipped}))
    clear = tuple(sorted({*item.cleared, *cleared} - set(skip)))
    new_counts = item.counts if counts is None else counts
    marks = item.marks if new_counts is None else recounted(item.marks, new_counts)
    full = msgspec.json.decode(item.original)
    # A client's own token_count is spread over the parts whole; only the server's count has an overhead.
    overhead = MESSAGE_OVERHEAD_TOKENS if new_counts is not None else full["token_count"] - sum(mark.tokens for mark in item.marks)
    tokens = overhead + sum(cost(mark, place in clear) for place, mark in enumerate(marks) if place not in skip)
    unchanged = not skip and not clear and new_counts is None
    body = item.original if unchanged else _edited_body(full, skip, clear, tokens)
    return Item(
        LIVE,
        item.seq,
        item.role,
        body,
        tokens,
        marks,
        pinned=item.pinned if pinned is None else pinned,
        skipped=skip,
        cleared=clear,
        counts=new_counts,
        original=item.original,
    )


def recounted(marks: Sequence[Mark], counts: Sequence[int]) -> tuple[Mark, ...]:
    """The marks with new costs."""
    return tuple(msgspec.structs.replace(mark, tokens=count) for mark, count in zip(marks, counts, strict=True))


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
    return Item(MARKER, call_seq, "tool", _json.encode(fields), MARKER_TOKENS, (mark,), call_id=call_id)


def summary_item(covers: tuple[int, int], draft_fields: bytes, role: str, tokens: int, marks: tuple[Mark, ...], origin: tuple[int, int]) -> Item:
    """An item that a rewrite puts in place of the messages `covers` (inclusive). `origin` is (version of the rewrite, place in it)."""
    body = b'{"seq":null,"covers":[%d,%d],%b}' % (*covers, draft_fields)
    return Item(SUMMARY, covers[0], role, body, tokens, marks, to_seq=covers[1], origin=origin)
