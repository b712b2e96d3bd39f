"""Whether this node stood still: nothing of it ran for so long that others may elect leaders in its place.

Too little CPU, swapping or a stopped process look the same from outside: leaderships that wander and writes that fail for no reason that
any other line of the log gives. Knows how late a step of Raft's time came; not a clock.
"""

import logging

logger = logging.getLogger("contextstore.cluster")


class Pauses:
    """A count since the start. A step that comes more than half of `election_s` late was a pause."""

    def __init__(self, election_s: float) -> None:
        self._election_s = election_s
        self.count = 0

    def note(self, late_s: float) -> None:
        """A step came so much later than it was due."""
        if 2 * late_s <= self._election_s:
            return
        self.count += 1
        logger.warning(
            "this node stood still for %.1f s; others elect leaders in its place after %.1f s. Give it more CPU, or raise election_ticks",
            late_s,
            self._election_s,
        )
