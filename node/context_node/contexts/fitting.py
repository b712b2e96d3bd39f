"""A window as it would stand under another budget or policy, for one read.

Invariant: the stored window is not touched; the answer is what appending the stored items one by one would have made.
"""

from collections.abc import Iterable

from context_node.contexts.compaction import NOTHING, Plan, compact, is_due
from context_node.contexts.items import Item
from context_node.contexts.window import Window

STUCK_MAX = 8
"""After so many compactions that left the window above its trigger, since all of it was floor, the rest joins without and one compaction
ends it. Each would look at the whole window again; a read of thousands of items under a tiny budget took 18 s."""


def fit(items: Iterable[Item], plan: Plan) -> Window:
    """Append `items` one by one to an empty window under `plan`."""
    window = Window()
    newest_seq = 0
    is_first = True
    stuck = 0
    for item in items:
        newest_seq = max(newest_seq, item.to_seq)
        is_rewritten = bool(window.join(item))
        outcome = compact(window, plan) if stuck < STUCK_MAX else NOTHING
        stuck += stuck < STUCK_MAX and is_due(window, plan)
        if outcome.changed or is_rewritten:
            window.forced = outcome.forced
        if outcome.changed or is_rewritten or is_first:
            window.mark_stable(newest_seq)
        is_first = False
    if stuck >= STUCK_MAX and compact(window, plan).changed:
        window.mark_stable(newest_seq)
    return window
