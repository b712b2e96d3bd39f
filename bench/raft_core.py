"""What one entry costs in the Raft core, beside what Python itself costs.

Drives a group of one voter through propose, ready, persisted, ready (committed) and applied without any disk, and
prints the microseconds an entry needs at several batch sizes, each beside a loop of the same shape that does nothing
in Python: ratios travel between machines, microseconds do not.

Run: python bench/raft_core.py [entries]
"""

import sys
import time

from context_node.raft import ConfState, Group

PAYLOAD = b"x" * 400
REPEATS = 5


def single_voter() -> Group:
    """A group of one that leads and has applied its own no-op."""
    group = Group(
        group_id=1,
        replica_id=1,
        seed=1,
        term=1,
        commit=1,
        snapshot_index=1,
        snapshot_term=1,
        applied=1,
        conf_state=ConfState(voters=(1,)).encode(),
    )
    group.campaign()
    finish(group)
    return group


def finish(group: Group) -> int:
    """Takes all work, as a runtime whose disk is infinitely fast would."""
    index = 0
    while (ready := group.ready()) is not None:
        if ready.log_record:
            group.persisted(ready.number)
        for entry in ready.committed:
            index = entry[0]
    if index:
        group.applied(index)
    return index


def raft_us(entries: int, batch: int) -> float:
    """Microseconds an entry takes through the group."""
    group = single_voter()
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(entries // batch):
            for _ in range(batch):
                group.propose(PAYLOAD)
            last = finish(group)
        elapsed = time.perf_counter() - started
        assert last == group.last_index
        group.compact(last)
        best = min(best, elapsed / (entries // batch * batch))
    return best * 1e6


class Nothing:
    """A stand-in with the same calls that keeps a list."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, int, bytes]] = []
        self.index = 0

    def propose(self, data: bytes) -> tuple[int, int]:
        self.index += 1
        self.waiting.append((self.index, 1, 0, data))
        return self.index, 1

    def ready(self) -> list[tuple[int, int, int, bytes]] | None:
        taken, self.waiting = self.waiting, []
        return taken or None

    def persisted(self, number: int) -> None:
        pass

    def applied(self, index: int) -> None:
        pass


def nothing_us(entries: int, batch: int) -> float:
    """Microseconds an entry takes through a Python object that does nothing."""
    group = Nothing()
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(entries // batch):
            for _ in range(batch):
                group.propose(PAYLOAD)
            while (ready := group.ready()) is not None:
                group.persisted(1)
                for entry in ready:
                    index = entry[0]
            group.applied(index)
        best = min(best, (time.perf_counter() - started) / (entries // batch * batch))
    return best * 1e6


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"one voter, {len(PAYLOAD)}-byte entries, best of {REPEATS} runs of {entries}")
    print(f"{'batch':>6} {'raft us/entry':>14} {'python us/entry':>16} {'ratio':>7}")
    for batch in (1, 8, 64, 256):
        raft, python = raft_us(entries, batch), nothing_us(entries, batch)
        print(f"{batch:>6} {raft:>14.2f} {python:>16.2f} {raft / python:>7.1f}")


if __name__ == "__main__":
    main()
