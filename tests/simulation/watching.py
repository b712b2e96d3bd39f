"""Where the judge stands: every store, replica and engine of the interpreter is watched while a run lasts, and tells it what it does.

Knows which methods of the shell are looked at, and what of their arguments the judge needs. Does not know the rules. Invariant: what was
wrapped is as it was when the watch ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from context_node.contexts import machine
from context_node.contexts.commands import NoteArchived
from context_node.contexts.shard_state import ShardState
from context_node.raft import Role, _core
from context_node.runtime import holdings
from context_node.runtime.engine import Engine
from context_node.runtime.log_store import LogStore
from context_node.runtime.moving import Moves
from context_node.runtime.proposals import Proposal, Proposals
from context_node.runtime.replica import Replica
from context_node.runtime.state_store import StateStore
from simulation.judge import Judge


@contextmanager
def watching(judge: Judge) -> Iterator[None]:
    """While this block runs, everything tells the judge."""
    watches: list[tuple[Any, str, Any]] = []

    def wrap(kind: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(kind, name)
        watches.append((kind, name, original))

        def watched(self: Any, *arguments: Any, **named: Any) -> Any:
            return around(original, self, *arguments, **named)

        setattr(kind, name, watched)

    watch = _Watch(judge)
    try:
        wrap(LogStore, "append", watch.append)
        for name in ("truncate", "install", "remove"):
            wrap(LogStore, name, watch.change(name))
        wrap(LogStore, "seal", judge.sealed)
        wrap(_core, "sync_file", judge.synced)
        wrap(LogStore, "recover", watch.recover)
        wrap(StateStore, "checkpoint", watch.checkpoint)
        wrap(StateStore, "__init__", watch.state_open)
        wrap(holdings, "remove_database", watch.remove_database)
        wrap(Moves, "_give_away", watch.give_away)
        wrap(Replica, "apply", watch.apply)
        wrap(Replica, "_take_members", watch.members)
        wrap(Replica, "note_role", watch.role)
        wrap(Proposals, "done", watch.done)
        wrap(Engine, "receive", watch.receive)
        wrap(Engine, "remove", watch.remove)
        wrap(Engine, "_drain", watch.drain)
        wrap(Engine, "rest", watch.rest)
        wrap(Engine, "wake_led_by", watch.wake)
        wrap(machine, "note_archived", watch.note)
        yield
    finally:
        for kind, name, original in watches:
            setattr(kind, name, original)


class _Watch:
    """Each method stands for one of the shell's: it does what that does, and tells the judge."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def note(self, original: Any, state: ShardState, command: NoteArchived) -> Any:
        reply = original(state, command)
        self.judge.noted(state, command)
        return reply

    def append(self, original: Any, log: LogStore, records: Any) -> Any:
        number = original(log, records)
        self.judge.changing(log, [("append", shard, record) for shard, record in records])
        self.judge.mark("several shards shared an fsync", len({shard for shard, _ in records}) > 1)
        return number

    def change(self, kind: str) -> Callable[..., Any]:
        def changing(original: Any, log: LogStore, *arguments: Any) -> Any:
            result = original(log, *arguments)
            self.judge.changing(log, [(kind, *arguments)])
            return result

        return changing

    def recover(self, original: Any, log: LogStore) -> Any:
        found = original(log)
        self.judge.recovered(log, found)
        return found

    def state_open(self, original: Any, store: StateStore, path: str, *arguments: Any, **named: Any) -> None:
        original(store, path, *arguments, **named)
        self.judge.opened(path, store.applied().index)

    def checkpoint(self, original: Any, store: StateStore) -> Any:
        index = store.applied().index
        result = original(store)
        if result.complete:
            self.judge.carried_over(store.path, index)
        return result

    def remove_database(self, original: Any, path: str, disk: Any) -> None:
        self.judge.removing(path)
        original(path, disk)

    def give_away(self, original: Any, moves: Moves, spared: Any) -> int:
        given: int = original(moves, spared)
        self.judge.mark("leaderships were handed over because of a slow disk", given > 0 and moves._cluster.has_slow_disk)
        return given

    def apply(self, original: Any, replica: Replica, committed: Any, now: float) -> None:
        self.judge.applying(replica, committed)
        original(replica, committed, now)

    def members(self, original: Any, replica: Replica, conf_state: bytes) -> None:
        is_start = "has_peers" not in replica.__dict__
        original(replica, conf_state)
        if not is_start:
            self.judge.took_members(replica)

    def role(self, original: Any, replica: Replica, role: int) -> None:
        is_new = any(one.since is None for one in replica._proposals._waiting.values())
        self.judge.mark("a leader with writes under way stepped down", role != Role.LEADER and is_new)
        original(replica, role)

    def done(self, original: Any, proposals: Proposals, index: int, proposal: Proposal) -> None:
        is_well = proposal.since is not None and proposal.reply.done() and not proposal.reply.cancelled()
        self.judge.mark("a write outlived the leadership of its leader and was answered", is_well)
        original(proposals, index, proposal)

    def receive(self, original: Any, engine: Engine, node: int, messages: Sequence[tuple[int, bytes]]) -> None:
        for shard, message in messages:
            replica = engine.replicas.get(shard)
            was_queued = replica is None or replica.is_queued
            original(engine, node, [(shard, message)])
            # What makes a group have something to do was taken; of one that had already, nobody can tell.
            if replica is not None and not was_queued:
                self.judge.received(node, replica, message, replica.is_queued)

    def remove(self, original: Any, engine: Engine, replica: Replica, why: str) -> None:
        gathered = sum(shard == replica.shard for shard, _ in engine._gathered)
        original(engine, replica, why)
        left = sum(shard == replica.shard for shard, _ in engine._gathered)
        self.judge.mark("a replica went while records of it waited", gathered > 0)
        self.judge.check(not left, "P6", f"{left} records of replica {replica.group.replica_id} are written after it went")

    def rest(self, original: Any, engine: Engine, rests: Sequence[Any]) -> Any:
        awake = original(engine, rests)
        self.judge.mark("a member did not agree to rest", bool(awake))
        self.judge.mark("a group went to rest", len(awake) < len(rests))
        return awake

    def wake(self, original: Any, engine: Engine, node: int) -> None:
        resting = sum(replica.is_resting for replica in engine.replicas.values())
        original(engine, node)
        self.judge.mark("a resting group lost its leader's node", resting > sum(replica.is_resting for replica in engine.replicas.values()))

    def drain(self, original: Any, engine: Engine, replica: Replica, persisted: int | None = None) -> None:
        members = replica.conf_state
        original(engine, replica, persisted)
        self.judge.drained(replica, members)
