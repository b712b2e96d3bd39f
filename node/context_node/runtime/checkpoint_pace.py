"""Which shards' databases are checkpointed now, so that the disk is asked for a little all the time instead of for much at once.

A checkpoint writes what a database's WAL holds and syncs it, and everybody's commits wait behind that at the disk. Shards that are written
to alike would all be due at the same moment: so from half of `bytes_max` on they have their turns one after the other, one for each half of
`bytes_max` that the WALs grow by together, which is as often as has to be. Nodes that hold the same shards have theirs at other moments.
Knows sizes. Does not know shards, nor how they are checkpointed. Invariant: what has `bytes_max` is due.
"""

from collections.abc import Mapping


class CheckpointPace:
    """`bytes_max`: with so many bytes in its WAL a database does not wait for its turn. `phase`, in [0, 1): how far this node's turns are
    from those of others."""

    def __init__(self, bytes_max: int, phase: float = 0.0) -> None:
        self._bytes_max, self._turn_bytes = bytes_max, bytes_max // 2
        self._seen: dict[int, int] = {}
        self._share = -phase * self._turn_bytes
        """Bytes that the WALs grew by and that no turn was given for. At most one turn is in arrears, however long nothing was due."""
        self._has_begun = False

    def due(self, sizes: Mapping[int, int]) -> list[int]:
        """The shards whose turn is now, the largest first. `sizes`: bytes in the WAL of each."""
        grown = sum([self._grown(shard, size) for shard, size in sizes.items()])
        self._seen = dict(sizes)
        turn = self._turn_bytes
        if not self._has_begun and max(sizes.values(), default=0) >= turn:
            self._has_begun = True
            self._share += turn
        elif self._has_begun:
            self._share += grown
        due = []
        for shard in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if sizes[shard] < self._bytes_max and (sizes[shard] < turn or self._share < turn):
                break
            due.append(shard)
            self._share = max(0.0, self._share - turn)
        self._share = min(self._share, turn)
        return due

    def _grown(self, shard: int, size: int) -> int:
        before = self._seen.get(shard, 0)
        return size - before if size >= before else size
