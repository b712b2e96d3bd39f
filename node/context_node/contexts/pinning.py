"""Pins: which items a window has once a message is pinned, or no longer is.

Knows SEMANTICS.md "Pins" and what a pin does to a unit that left the window. Functions look at a context and give the new
items, or raise a `Refusal`; they change nothing. Invariant: no call stands without its result or a marker (W2).
"""

from collections.abc import Sequence

from context_node.contexts.commands import Restored
from context_node.contexts.context import Context
from context_node.contexts.items import LIVE, MARKER, Item, edited
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.rewriting import conflict, restored_item
from context_node.contexts.units import is_undisturbed, link
from context_node.contexts.window import Window


def pinned_items(context: Context, seq: int, restored: Sequence[Restored]) -> list[Item] | None:
    """The items with the message `seq` pinned; None if it is already. A message that left the window comes back with its
    unit, `restored`; what of that unit is still there, whole or in part, gives way to it."""
    items = context.window.items
    present = [item for item in items if item.kind == LIVE and item.seq == seq]
    if present:
        if all(item.pinned for item in present):
            return None
        return [edited(item, pinned=True) if item.kind == LIVE and item.seq == seq else item for item in items]
    if not any(message.seq == seq for message in restored):
        raise conflict(context, f"Message {seq} left the window just now; try again.")
    block = _block(items, seq, restored)
    if not any(item.seq == seq for item in block):
        raise Unprocessable(f"Message {seq} cannot stand in a window: it holds only results whose call is not in the history.", seq=seq)
    gone = _places_of(items, {item.seq for item in block})
    first = min((item.seq for item in block), default=seq)
    later = (place for place, item in enumerate(items) if item.kind != MARKER and item.seq > first)
    position = min(min(gone, default=len(items)), next(later, len(items)))
    before = [item for place, item in enumerate(items[:position]) if place not in gone]
    after = [item for place, item in enumerate(items[position:], position) if place not in gone]
    new = [*before, *block, *after]
    if not is_undisturbed(items, new):
        raise Unprocessable(f"Message {seq} cannot come back: messages of the window use its tool call ids by now.", seq=seq)
    return new


def _block(items: Sequence[Item], seq: int, restored: Sequence[Restored]) -> list[Item]:
    pinned = {seq, *(item.seq for item in items if item.pinned)}
    scratch = Window()
    for message in restored:
        scratch.join(restored_item(message, pinned=message.seq in pinned))
    # What left the window did not wait, so its calls want no result any more.
    scratch.end_waiting()
    return scratch.items


def _places_of(items: Sequence[Item], seqs: set[int]) -> set[int]:
    """The positions of those messages and of the markers that stand in for their results."""
    gone = {place for place, item in enumerate(items) if item.kind == LIVE and item.seq in seqs}
    calls = [call for calls in link(items).open_calls.values() for call in calls]
    markers = {id(call.marker) for call in calls if call.item.kind == LIVE and call.item.seq in seqs}
    return gone | {place for place, item in enumerate(items) if item.kind == MARKER and id(item) in markers}


def unpinned_items(context: Context, seq: int) -> list[Item] | None:
    """The items with the message `seq` no longer pinned; None if it is not."""
    items = context.window.items
    if not any(item.pinned and item.seq == seq and item.kind == LIVE for item in items):
        return None
    return [edited(item, pinned=False) if item.kind == LIVE and item.seq == seq else item for item in items]
