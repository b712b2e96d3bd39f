"""What of an archived context its window holds, so that each message can be sent with that word.

Knows records. For whoever reads an archive and sends it (`cli/restoring.py`); applying does not depend on it.
"""

from collections.abc import Iterable, Sequence

from context_node.contexts import lookback
from context_node.contexts.context import held_ranges, read_record

Ranges = Sequence[tuple[int, int]]


class Held:
    """A set of seqs, as ascending ranges that do not touch."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self._place = 0

    def __contains__(self, seq: int) -> bool:
        """Cheap for ascending seqs."""
        ranges, place = self.ranges, self._place
        if place and ranges[place - 1][1] >= seq:
            place = 0
        while place < len(ranges) and ranges[place][1] < seq:
            place += 1
        self._place = place
        return place < len(ranges) and ranges[place][0] <= seq


def held_by(record: bytes, last_seq: int, newest: Iterable[tuple[int, int]]) -> tuple[Held, int]:
    """Which of the messages up to `last_seq` the window will hold, and from where on it has to be made anew (0: it is as archived).

    `newest` gives (seq, tokens) of those messages, newest first. It is read only if the record is ahead of `last_seq`, as far as the budget
    goes and back to where the call of the newest result may be. Raises one of `restore_checks.MALFORMED` for a record that cannot be read.
    """
    head, window = read_record(record)
    ranges = [(first, min(last, last_seq)) for first, last in held_ranges(window.places) if first <= last_seq]
    if head.last_seq <= last_seq:
        return Held(ranges), 0
    rebuild_from, spent = last_seq + 1, 0
    for seq, tokens in newest:
        if spent > head.config.token_budget and seq + lookback.REACH <= last_seq:
            break
        rebuild_from, spent = seq, spent + tokens
    kept = [(first, min(last, rebuild_from - 1)) for first, last in ranges if first < rebuild_from]
    return Held([*kept, (rebuild_from, last_seq)] if rebuild_from <= last_seq else kept), rebuild_from
