"""The answer to "give me the window": a join of bytes that are ready, and what is said about them.

Knows the JSON shape of a window (PRODUCT.md, GET `/contexts/{id}/context`). Invariant: equal windows give equal bytes (W5).
`REVISION` is part of every ETag: change it with the shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from context_node.contexts.commands import encode_json
from context_node.contexts.compaction import Plan, needs_compaction, over_budget_reason
from context_node.contexts.items import LIVE, MARKER, SUMMARY, Item
from context_node.contexts.window import Window

REVISION = 1


@dataclass(frozen=True, slots=True)
class Rendered:
    """A window's JSON object, with the figures that callers ask for apart from it."""

    body: bytes
    used_tokens: int
    over_budget: bool


def render_window(window: Window, plan: Plan, *, version: int, last_seq: int) -> Rendered:
    """The window's JSON object."""
    reason = over_budget_reason(window, plan.budget)
    flags = b""
    if reason is not None:
        flags += b'"over_budget_reason":"%b",' % reason.encode()
    if window.forced:
        flags += b'"forced":true,'
    body = (
        b'{"messages":[%b],"version":%d,"last_seq":%d,"token_budget":%d,"used_tokens":%d,"token_count":%d,"needs_compaction":%b,'
        b'"over_budget":%b,%b"segments":%b,"prefix_hash":"%b","stable_through_seq":%d}'
    ) % (
        b",".join([item.body for item in window.items]),
        version,
        last_seq,
        plan.budget,
        window.tokens,
        window.tokens,
        b"true" if needs_compaction(window, plan) else b"false",
        b"true" if reason is not None else b"false",
        flags,
        encode_json(segments(window.items, last_seq)),
        prefix_hash(window).encode(),
        window.rewritten_seq,
    )
    return Rendered(body, window.tokens, reason is not None)


def prefix_hash(window: Window) -> str:
    """SHA-256 (hex) over the bodies of the items up to `rewritten_seq`, each followed by a newline."""
    digest = sha256()
    for item in window.items:
        if item.kind == LIVE and item.seq > window.rewritten_seq:
            break
        digest.update(item.body)
        digest.update(b"\n")
    return digest.hexdigest()


def segments(items: Sequence[Item], last_seq: int) -> list[dict[str, object]]:
    """What became of each stretch of the history: `live`, behind a `summary`, or a `gap`; by seq, ascending."""
    spans: list[list[object]] = []
    stretches = [("summary" if item.kind == SUMMARY else "live", item.seq, item.to_seq) for item in items if item.kind != MARKER]
    if any(before[1] > after[1] for before, after in zip(stretches, stretches[1:], strict=False)):
        stretches.sort(key=lambda stretch: (stretch[1], stretch[2]))
    covered = 0
    for kind, first, last in stretches:
        if first > covered + 1:
            spans.append(["gap", covered + 1, first - 1])
        if spans and kind == "live" == spans[-1][0] and first <= covered + 1:
            spans[-1][2] = max(last, covered)
        elif not (kind == "summary" and spans and spans[-1] == [kind, first, last]):
            spans.append([kind, first, last])
        covered = max(covered, last)
    if covered < last_seq:
        spans.append(["gap", covered + 1, last_seq])
    return [{"type": kind, "from_seq": first, "to_seq": last} for kind, first, last in spans]
