"""Every entry that any life of a node applied, and a state machine that was never interrupted to compare with.

Knows replicas from outside: what they apply passes a tape. Invariants checked at every entry: an index that was applied once has the same
term and content in every later life (I5), and entries are applied in order without holes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from context_node.contexts.machine import Machine
from context_node.raft import ConfState, Group
from context_node.runtime.holdings import FIRST_INDEX
from context_node.runtime.replica import Replica
from context_node.runtime.state_store import StateOptions, StateStore
from support.power_cut_vfs import PowerCutDisk

Entry = tuple[int, int, int, bytes]
"""(index, term, kind, data), as `Ready.committed` gives them."""

CONF_STATE = ConfState(voters=(1,)).encode()


class EntryTape:
    """Entries by shard and index."""

    def __init__(self) -> None:
        self.entries: dict[int, dict[int, Entry]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """While this block runs, everything that any replica of this process applies is taped."""
        apply = Replica.apply
        tape = self

        def taped(self: Replica, committed: Sequence[Entry], now: float) -> None:
            tape.note(self.shard, self.applied_index, committed)
            apply(self, committed, now)

        setattr(Replica, "apply", taped)  # noqa: B010 - mypy rightly refuses to assign to a method
        try:
            yield
        finally:
            setattr(Replica, "apply", apply)  # noqa: B010

    def note(self, shard: int, applied_index: int, committed: Sequence[Entry]) -> None:
        """Take down what a replica that is at `applied_index` is about to apply."""
        known = self.entries.setdefault(shard, {})
        for expected, entry in enumerate(committed, applied_index + 1):
            assert entry[0] == expected, f"shard {shard} applies {entry[0]} after {expected - 1}"
            before = known.setdefault(expected, entry)
            assert before == entry, f"entry {expected} of shard {shard} changed after it was applied (I5)"

    def digest(self, shard: int, index: int) -> tuple[int, bytes]:
        """As `StateStore.digest`, of a replica that applied the tape up to `index` and was never stopped, evicted or flushed on the way."""
        disk = PowerCutDisk()
        store = StateStore(f"reference-{shard}.db", shard, StateOptions(exclusive=True, disk=disk))
        replica = Replica(
            shard,
            cast(Group, _NoGroup()),
            Machine(),
            store,
            applied_index=FIRST_INDEX,
            applied_term=FIRST_INDEX,
            conf_state=CONF_STATE,
            loop=cast(Any, None),
            on_work=lambda _replica: None,
            on_event=lambda _replica, _event: None,
            on_storage_error=lambda _error: None,
        )
        known = self.entries.get(shard, {})
        replica.apply([known[at] for at in range(FIRST_INDEX + 1, index + 1)], 0.0)
        # A machine that applied nothing has an applied index to store all the same.
        replica.stored_index = FIRST_INDEX - 1
        replica.flush()
        digest = store.digest()
        store.close()
        disk.close()
        return digest


class _NoGroup:
    """What a replica asks of its group while it applies."""

    replica_id = 1
    is_leader = False

    def applied(self, index: int) -> None:
        pass
