"""Finding what belongs to a message that has left its window: its unit, read from the history around it.

Pure: the caller reads the rows. Invariant: what comes back pairs as it did when it was appended, as far as `REACH` messages show it.
"""

from collections.abc import Sequence

from context_node.contexts.commands import Restored
from context_node.contexts.items import LIVE, info_decoder, live_item
from context_node.contexts.units import link
from context_node.contexts.window import Window

REACH = 256
"""So many messages before and after are looked at for calls and results."""


def tokens_of(info: bytes) -> int:
    """What a stored message costs."""
    return info_decoder.decode(info).tokens


def unit_of(rows: Sequence[Restored], seq: int) -> list[Restored]:
    """The messages of the unit that holds `seq`, in window order, from the history around it. Only the message itself if it
    pairs with nothing."""
    window = Window()
    for row in rows:
        window.join(live_item(row.seq, row.body, info_decoder.decode(row.info)))
    by_seq = {row.seq: row for row in rows}
    for unit in link(window.items).units:
        members = [window.items[place] for place in unit.places]
        if any(item.kind == LIVE and item.seq == seq for item in members):
            seqs = dict.fromkeys(item.seq for item in members if item.kind == LIVE)
            return [by_seq[member] for member in seqs]
    return [by_seq[seq]] if seq in by_seq else []
