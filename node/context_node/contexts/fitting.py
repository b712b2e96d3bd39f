"""A window as it would stand under another budget or policy, for one read.

Invariant: the stored window is not touched; the answer is what appending the stored items one by one would have made.
"""

from collections.abc import Iterable

from context_node.contexts.compaction import Plan, compact
from context_node.contexts.items import Item
from context_node.contexts.window import Window


def fit(items: Iterable[Item], plan: Plan) -> Window:
    """Append `items` one by one to an empty window under `plan`."""
    window = Window()
    for item in items:
        rewrote = bool(window.join(item))
        outcome = compact(window, plan)
        if outcome.changed or rewrote or not window.rewritten_seq:
            window.rewritten_seq = max(window.rewritten_seq, item.to_seq)
            window.forced = outcome.forced
    return window
