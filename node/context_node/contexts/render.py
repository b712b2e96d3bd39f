"""The answer to "give me the window": a join of bytes that are ready, and what is said about them.

Knows the JSON shape of a window (PRODUCT.md, GET `/contexts/{id}/context`). Invariant: equal windows give equal bytes (W5). `REVISION` is
part of every ETag: change it with the shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from context_node.contexts.commands import encode_json
from context_node.contexts.compaction import Plan, needs_compaction, over_budget_reason
from context_node.contexts.items import LIVE, SUMMARY, Item
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
        b'{"messages":[%b],"version":%d,"last_seq":%d,"token_budget":%d,"used_tokens":%d,"token_count":%d,'
        b'"needs_compaction":%b,"over_budget":%b,%b"segments":%b,"prefix_hash":"%b","stable_through_seq":%d}'
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
    """SHA-256 (hex) over the bodies of the items that stood at the last rewrite, each followed by a newline. Kept by the
    window until the next one."""
    if not window.prefix_hash:
        digest = sha256()
        for item in window.items[: window.stable_count]:
            digest.update(item.body)
            digest.update(b"\n")
        window.prefix_hash = digest.hexdigest()
    return window.prefix_hash


def segments(items: Sequence[Item], last_seq: int) -> list[dict[str, object]]:
    """What became of each seq of the history, in stretches: `live`, behind a `summary`, or a `gap`. They follow each other
    without overlap from 1 to `last_seq`; a message that still stands inside a summarized range is live."""
    live: list[list[int]] = []
    summaries: set[tuple[int, int]] = set()
    end = -1
    is_sorted = True
    for item in items:
        kind = item.kind
        if kind == LIVE:
            seq = item.seq
            if seq == end + 1 and live:
                live[-1][1] = end = seq
            else:
                is_sorted = is_sorted and seq > end
                live.append([seq, seq])
                end = seq
        elif kind == SUMMARY and item.to_seq >= item.seq > 0:
            summaries.add((item.seq, item.to_seq))
    spans = live if is_sorted else _merged(live)
    covers = sorted(summaries)
    result: list[dict[str, object]] = []
    reached = 0
    for first, last in [*spans, [last_seq + 1, last_seq]]:
        if first > reached + 1:
            covers = _fill(result, covers, reached + 1, first - 1)
        if last >= first:
            result.append({"type": "live", "from_seq": first, "to_seq": last})
        reached = last
    return result


def _merged(spans: list[list[int]]) -> list[list[int]]:
    """Spans in order, those that touch made one. A late result stands before its time, and its message may be in two places."""
    merged: list[list[int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(last, merged[-1][1])
        else:
            merged.append([first, last])
    return merged


def _fill(result: list[dict[str, object]], covers: list[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Say what stands for the seqs from `first` to `last`, where nothing is live. Returns the covers that later seqs may
    need."""
    reached = first - 1
    used = 0
    for start, end in covers:
        if start > last:
            break
        used += 1
        start, end = max(start, reached + 1), min(end, last)
        if start > end:
            continue
        if start > reached + 1:
            result.append({"type": "gap", "from_seq": reached + 1, "to_seq": start - 1})
        result.append({"type": "summary", "from_seq": start, "to_seq": end})
        reached = end
    if reached < last:
        result.append({"type": "gap", "from_seq": reached + 1, "to_seq": last})
    return [cover for cover in covers[:used] if cover[1] > last] + covers[used:]
