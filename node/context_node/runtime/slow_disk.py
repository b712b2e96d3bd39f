"""Whether a node's disk is slow: what it leads waits for that disk with every write, and another node's may be healthy.

Knows how long COMMITs take. Does not know what is done about it, nor a clock: times come in. A leader with a slow disk is worse than one
that is dead: it keeps its followers from electing another, and every write of its shards waits for it.
"""

WEIGHT = 0.2
"""Of the newest COMMIT in the running mean: some ten of them decide."""

HELD_S = 10.0
"""A disk that was slow counts as slow for so long, so that leaderships do not go to and fro."""


class DiskWatch:
    """A running mean over COMMITs. `limit_s`: a disk whose COMMITs take longer is slow; 0: none ever is."""

    def __init__(self, limit_s: float) -> None:
        self.mean_s = 0.0
        self._limit_s = limit_s
        self._began: float | None = None
        self._slow_until = -1.0

    def begin(self, now: float) -> None:
        """A COMMIT begins, at `now` on any steady clock, in seconds."""
        self._began = now

    def end(self, now: float) -> None:
        """It is done."""
        if self._began is not None:
            self.mean_s += WEIGHT * (now - self._began - self.mean_s)
            self._began = None
            self._look(now)

    def is_slow(self, now: float) -> bool:
        """Whether the disk is slow, or was a moment ago. One COMMIT that takes ten times the limit is enough."""
        if self._began is not None and self._limit_s and now - self._began > 10 * self._limit_s:
            self._slow_until = now + HELD_S
        return now < self._slow_until

    def _look(self, now: float) -> None:
        if self._limit_s and self.mean_s > self._limit_s:
            self._slow_until = now + HELD_S
