"""Which shards' effects are written to their databases now, so that writers feel it least.

A flush holds the event loop for as long as its rows take. Shards that became busy together would all be due together, and all writes
would wait behind all of them: so in each round as many shards are flushed as have to be for each to have its turn within `age_s`, the
oldest first. Knows ages and sizes. Does not know shards, nor how they are flushed. Invariant: what is `age_s` old, or `bytes_max` large,
is due.
"""

from collections.abc import Sequence


class FlushPace:
    """`age_s` is the longest that anything waits; what has `bytes_max` does not wait."""

    def __init__(self, age_s: float, bytes_max: int) -> None:
        self._age_s, self._bytes_max = age_s, bytes_max
        self._share = 0.0
        """How many are to be flushed ahead of their time by now."""
        self._looked_at = 0.0

    def due(self, waiting: Sequence[tuple[float, int]], now: float) -> list[int]:
        """The places in `waiting` that are to be flushed now, the oldest first. Each is what one shard has that is not stored: since when,
        and its bytes."""
        if not waiting:
            self._share = 0.0
            return []
        oldest = min(since for since, _ in waiting)
        if self._age_s > 0:
            # Only time in which something waited counts: after a pause nothing is in arrears.
            passed_s = max(0.0, now - max(self._looked_at, oldest))
            self._share = min(self._share + len(waiting) * passed_s / self._age_s, len(waiting))
        self._looked_at = now
        due = []
        for place in sorted(range(len(waiting)), key=lambda place: waiting[place][0]):
            since, size = waiting[place]
            if size >= self._bytes_max:
                # Beside the turns: large shards must not take those of the others.
                due.append(place)
            elif now - since >= self._age_s or self._share >= 1:
                due.append(place)
                self._share = max(0.0, self._share - 1)
        return due
