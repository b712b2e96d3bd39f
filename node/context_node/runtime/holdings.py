"""The replicas that a node holds, and their files: made, found again, replaced by a snapshot, dropped.

Knows the state databases by name and how the log names them. Does not know who decides what is held. Invariants: a replica id and a
database are durable before the log names them (P6), and what the log does not name is a leftover; one row of the log switches a replica to
another generation; a replica that is replaced or begins anew keeps its vote (I2).
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from context_node.contexts.cluster import ClusterState
from context_node.contexts.machine import Machine
from context_node.contexts.policies import policy_decoder, policy_of
from context_node.contexts.refusals import Unavailable
from context_node.raft import ConfState, Group
from context_node.runtime import snapshots
from context_node.runtime.databases import CacheBudget, StorageError, StorageFailed
from context_node.runtime.engine import Engine
from context_node.runtime.log_rows import HardState, RecoveredShard
from context_node.runtime.log_store import LogStore
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, replica_id_on
from context_node.runtime.snapshots import Incoming, Manifest, Snapshot, SnapshotRefused, remove_database
from context_node.runtime.state_rows import StateChanges
from context_node.runtime.state_store import StateOptions, StateStore
from context_node.runtime.storing import applied_of, machine_record
from context_node.runtime.worker import Worker

if TYPE_CHECKING:
    import asyncio

    from context_node.runtime.node import Node

FIRST_INDEX = 1
"""A group begins as if entry 1 of term 1 had been applied: the configuration it was born with."""

FIRST_NODE = 1
"""The number of the node that begins a cluster, also of one that never gets company."""


class Holdings:
    """See the module's docstring. `worker` is the node's for everything on a disk but COMMITs."""

    def __init__(self, node: "Node", loop: "asyncio.AbstractEventLoop", random_bytes: Callable[[int], bytes], worker: Worker) -> None:
        self._node = node
        self._options = node.options
        self._loop = loop
        self._random_bytes = random_bytes
        self._worker = worker

    @property
    def state_dir(self) -> str:
        return os.path.join(self._options.data_dir, "state")

    def _state_path(self, shard: int, generation: str) -> str:
        return os.path.join(self.state_dir, f"{shard:05d}-{generation}.db")

    def _state_options(self) -> StateOptions:
        # One database a shard and the system group's.
        cache_bytes = CacheBudget(self._options.state_cache_bytes, self._options.shards + 1).each_bytes
        return replace(self._options.state, cache_bytes=cache_bytes, disk=self._options.disk)

    # --- a start ------------------------------------------------------------------------------------------------------

    def bootstrap(self, log: LogStore) -> dict[int, RecoveredShard]:
        """Make every group of a new node: one voter each. All of it counts only with the one commit at its end."""
        made: dict[int, RecoveredShard] = {}
        for shard in [*range(self._options.shards), SYSTEM_SHARD]:
            replica_id = replica_id_on(FIRST_NODE, self._random_bytes(5))
            generation = self._random_bytes(4).hex()
            conf_state = ConfState(voters=(replica_id,)).encode()
            self._create_state(shard, self._state_path(shard, generation), conf_state)
            hard_state = HardState(FIRST_INDEX, 0, FIRST_INDEX)
            log.install(shard, replica_id, generation, hard_state, FIRST_INDEX, FIRST_INDEX)
            made[shard] = RecoveredShard(replica_id, generation, hard_state, FIRST_INDEX, FIRST_INDEX, [])
        log.notes.note_shards(self._options.shards)
        log.commit()
        return made

    def empty(self) -> None:
        """Remove everything of a store that its cluster has removed, the log last: until then the next start begins here again."""
        disk, folder = self._options.disk, self._options.data_dir
        for name in disk.names_in(self.state_dir):
            disk.remove(os.path.join(self.state_dir, name))
        disk.sync_directory(self.state_dir)
        log_files = [name for name in disk.names_in(folder) if name in ("log.db-journal", "log.db-shm", "log.db-wal")]
        for name in (*log_files, "log.db"):
            disk.remove(os.path.join(folder, name))
        disk.sync_directory(folder)

    def check_nothing_is_there(self) -> None:
        """A log without shards begins a new node. If there are databases that hold anything, their log was lost: nothing may be removed or
        begun (H1). Those of a bootstrap that was cut short are empty."""
        disk = self._options.disk
        for name in disk.names_in(self.state_dir):
            if not name.endswith(".db"):
                continue
            path = os.path.join(self.state_dir, name)
            store = StateStore(path, int(name.partition("-")[0]), self._state_options())
            index = store.applied().index
            store.close()
            if index > FIRST_INDEX:
                what = f"log.db is missing or empty, and state/{name} holds data; restore the whole data directory"
                raise StorageFailed(self._options.data_dir, "start", what)

    def remove_leftovers(self, recovered: dict[int, RecoveredShard]) -> None:
        named = {os.path.basename(self._state_path(shard, found.generation)) for shard, found in recovered.items()}
        for name in self._options.disk.names_in(self.state_dir):
            if name.removesuffix("-wal").removesuffix("-shm").removesuffix("-journal") not in named:
                self._options.disk.remove(os.path.join(self.state_dir, name))

    def _create_state(self, shard: int, path: str, conf_state: bytes, index: int = FIRST_INDEX) -> None:
        """An empty state database, durable with its name before the log names it (P6)."""
        store = StateStore(path, shard, self._state_options())
        try:
            store.flush(StateChanges(applied_of(Machine(), index, index, conf_state)))
            if not store.checkpoint().complete:
                raise StorageFailed(path, "create", "the first checkpoint was not complete")
        finally:
            store.close()

    def open_state(self, shard: int, found: RecoveredShard) -> StateStore:
        """The database that the log names. One that lacks what the log no longer has would be silent loss: refused (H1)."""
        path = self._state_path(shard, found.generation)
        if not self._options.disk.exists(path):
            raise StorageFailed(path, "start", "the log names this database, and it is not there; restore the whole data directory")
        store = StateStore(path, shard, self._state_options())
        if (index := store.applied().index) < found.truncated_index:
            store.close()
            what = f"it ends at entry {index} and the log begins after {found.truncated_index}: it is an older copy"
            raise StorageFailed(path, "start", what)
        return store

    def replica(self, shard: int, found: RecoveredShard, store: StateStore, engine: Engine) -> Replica:
        """One replica from its database and what the log holds beyond it."""
        applied = store.applied()
        kept = machine_record(applied.machine)
        machine = Machine(clock_ms=applied.clock_ms, next_ordinal=kept.next_ordinal)
        machine.cluster = ClusterState.decode(kept.cluster)
        machine.erasures = dict.fromkeys(kept.erasures)
        machine.archive_id, machine.archive_epoch, machine.has_trimmed = kept.archive_id, kept.archive_epoch, kept.has_trimmed
        for row in store.policies():
            stored = policy_decoder.decode(row.record)
            machine.policies[row.name] = policy_of(stored.record, stored.users)
        term, vote, commit = found.hard_state
        cluster = self._node.cluster
        timing: dict[str, Any] = {}
        if cluster is not None:
            timing = {"election_ticks": cluster.options.election_ticks, "heartbeat_ticks": cluster.options.heartbeat_ticks}
        group = Group(
            group_id=shard,
            replica_id=found.replica_id,
            seed=int.from_bytes(self._random_bytes(8), "big"),
            term=term,
            vote=vote,
            # The state database can be ahead of the hard state that was written with the last entries.
            commit=max(commit, applied.index),
            snapshot_index=found.truncated_index,
            snapshot_term=found.truncated_term,
            conf_state=applied.conf_state,
            applied=applied.index,
            records=found.records,
            **timing,
        )
        replica = Replica(
            shard,
            group,
            machine,
            store,
            applied_index=applied.index,
            applied_term=applied.term,
            conf_state=applied.conf_state,
            loop=self._loop,
            on_work=engine.queue,
            on_event=self._node.on_event,
            on_storage_error=self._node.state_failed,
        )
        replica.queued_bytes_max = self._options.queued_bytes_per_shard_max
        replica.revision = self._options.revision
        if cluster is not None:
            replica.level = cluster.membership.level
            replica.election_ticks = cluster.options.election_ticks
        if self._node.comparisons is not None:
            replica.on_compared = partial(self._node.comparisons.note, replica)
        return replica

    # --- replicas that come and go ------------------------------------------------------------------------------------

    async def create_replica(self, shard: int, replica_id: int) -> None:
        """Begin a blank replica, durable before this returns. It knows no members and waits for its leader's snapshot."""
        engine = self.running_engine()
        generation = self._random_bytes(4).hex()
        path = self._state_path(shard, generation)
        await self._worker.run(lambda: self._create_state(shard, path, b"", 0))
        hard_state = HardState(0, 0, 0)
        engine.with_log(lambda log: log.install(shard, replica_id, generation, hard_state, 0, 0))
        await engine.log_job(lambda log: None)
        if engine.is_failed:
            raise engine.failure or AssertionError("an engine fails with a reason")
        found = RecoveredShard(replica_id, generation, hard_state, 0, 0, [])
        engine.add(self.replica(shard, found, self.open_state(shard, found), engine))

    async def drop_replica(self, shard: int, replica_id: int) -> None:
        """Forget a replica and its files. Does nothing if another took its place."""
        engine = self.running_engine()
        replica = engine.replicas.get(shard)
        if replica is None or replica.group.replica_id != replica_id:
            return
        if replica.group.poisoned or replica.group.last_index:
            # What is purged of it from now on, others hear of.
            self._node.note_purge()
        engine.remove(replica, "This node does not hold that shard any more; try again shortly.")
        del engine.replicas[shard]
        engine.with_log(lambda log: log.remove(shard))
        with suppress(StorageError):
            await engine.log_job(lambda log: None)
        await self._close_store(replica)
        # With a log that failed the row may still be there, and names the files: the next recovery finds both, or removes leftovers.
        if not engine.is_failed:
            remove_database(replica.store.path, self._options.disk)

    async def reopen_replica(self, replica: Replica) -> None:
        """Begin a replica anew from what the disk has of it, keeping its vote."""
        engine, shard = self.running_engine(), replica.shard
        if engine.replicas.get(shard) is not replica:
            return
        status = replica.group.status()
        self._node.note_purge()
        engine.remove(replica, "This replica starts over; try again shortly.")

        def keep_vote(log: LogStore) -> None:
            commit = max(min(status.commit, status.persisted), replica.durable_index)
            log.truncate(shard, 0, 0, (status.term, status.vote, commit))

        engine.with_log(keep_vote)
        found: list[RecoveredShard] = []
        await engine.log_job(lambda log: found.append(log.reread(shard)))
        async with replica.storing:
            await self._worker.run(lambda: None)
            replica.store.close()
        engine.add(self.replica(shard, found[0], self.open_state(shard, found[0]), engine))

    async def _close_store(self, replica: Replica) -> None:
        """Whatever upkeep had begun on the old database ends before it is closed."""
        async with replica.storing:
            await self._worker.run(lambda: None)
            replica.store.close()

    # --- snapshots ----------------------------------------------------------------------------------------------------

    async def take_snapshot(self, shard: int) -> Snapshot:
        """A copy of a shard's state, under a name that the next start removes. The caller discards it."""
        replica = self._node.shards.replica(shard)
        path = self._state_path(shard, f"snapshot-{self._random_bytes(4).hex()}")
        return await snapshots.take(replica, path, self._worker, self._options.disk)

    def incoming_snapshot(self, manifest: Manifest) -> Incoming:
        """Where a snapshot is received before it is installed."""
        path = self._state_path(manifest.shard, self._random_bytes(4).hex())
        return Incoming(manifest, path, self._state_options())

    async def install_snapshot(self, incoming: Incoming, replica_id: int) -> None:
        """Replace this node's replica of a shard by what was received, as replica `replica_id`: one row of the log switches (P6).

        `incoming` has all its chunks. Raises `SnapshotRefused` if it is not what it claims to be or older than what the replica has;
        nothing has changed then.
        """
        engine, manifest = self.running_engine(), incoming.manifest
        await self._worker.run(incoming.finish)
        generation = incoming.path.removesuffix(".db").rpartition("-")[2]
        old = engine.replicas[manifest.shard]
        hard_state = HardState(manifest.term, 0, manifest.index)
        status = old.group.status()
        if status.replica_id == replica_id:
            if manifest.index <= old.applied_index:
                raise SnapshotRefused(f"shard {manifest.shard} is at entry {old.applied_index}, the snapshot at {manifest.index}")
            if status.term >= manifest.term:
                # A replica never forgets a vote (I2).
                hard_state = HardState(status.term, status.vote, manifest.index)
        incoming.is_named = True
        if status.last_index:
            # The snapshot may be behind a purge of what the log had of this shard.
            self._node.note_purge()
        engine.remove(old, "This replica is being replaced by a snapshot; try again shortly.")
        engine.with_log(lambda log: log.install(manifest.shard, replica_id, generation, hard_state, manifest.index, manifest.term))
        # Comes after the commit that holds the switch.
        await engine.log_job(lambda log: None)
        if engine.is_failed:
            raise engine.failure or AssertionError("an engine fails with a reason")
        await self._close_store(old)
        remove_database(old.store.path, self._options.disk)
        found = RecoveredShard(replica_id, generation, hard_state, manifest.index, manifest.term, [])
        replica = self.replica(manifest.shard, found, self.open_state(manifest.shard, found), engine)
        engine.add(replica)
        if replica.is_only_voter:
            replica.group.campaign()

    def running_engine(self) -> Engine:
        """What drives the replicas. Raises `Unavailable` while nothing does."""
        if self._node.engine is None or self._node.engine.is_failed:
            raise Unavailable("The node does not serve now; try again shortly.", retry_after_s=1)
        return self._node.engine
