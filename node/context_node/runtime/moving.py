"""Replicas that come, go and catch up: what an administrator's step does on a shard's leader, and snapshots between nodes.

Knows how a replica is created before anybody may count on it, how members change, and how a follower that is too far behind gets a
snapshot: Raft names it, the follower pulls its chunks from the leader, and the leader hears when it is installed. Does not know which
steps are wise. Invariants: a replica id is drawn anew for every replica and made durable on its node before the configuration names it, so
no message can make one; a snapshot that was announced stays on the leader's disk while it is asked for.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from context_node.contexts.refusals import Refusal, Unavailable, Unprocessable
from context_node.raft import ChangeKind, ConfChangeRefused, NotLeader, ProposalDropped, Ready
from context_node.runtime.cluster import Cluster, Led
from context_node.runtime.databases import StorageError
from context_node.runtime.not_here import NotHere
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of, replica_id_on
from context_node.runtime.snapshots import Manifest, Snapshot, SnapshotRefused

if TYPE_CHECKING:
    from context_node.runtime.node import Node

logger = logging.getLogger("contextstore.cluster")

CHANGE_TIMEOUT_S = 20.0
CONNECT_WAIT_S = 3.0
SNAPSHOT_KEPT_S = 60.0
"""A snapshot that nobody asked for so long is removed."""

HAND_OVER_S = 2.0
"""A stopping node waits so long for others to lead what it led, and to commit what was under way there."""

HAND_OVER_AGAIN_S = 0.05
"""So often it asks again for what nobody is about to take."""

TRANSFER_ASKS = 3
"""So often a node is asked to take a leadership over. Raft gives each up after an election timeout, for which the shard takes no writes."""

SNAPSHOT_LOOK_S = 0.25
"""How often a leader looks whether a follower needs a snapshot. Each look wakes an idle node."""

DISK_LOOK_S = 0.5
"""So often a node asks itself whether its disk is slow."""

PULLS_AT_ONCE = 2
BLANK_KEPT_S = 60.0
"""A replica that was created and never got a word from its leader is removed after so long: whoever wanted it has taken another id."""

CAUGHT_UP_ENTRIES = 1_000
"""A learner this close behind may become a voter."""


class Moves:
    """The calls about replicas, answered on this node."""

    def __init__(self, node: "Node", cluster: Cluster, random_bytes: Callable[[int], bytes]) -> None:
        self._node = node
        self._cluster = cluster
        self._random_bytes = random_bytes
        self._loop = asyncio.get_running_loop()
        self._snapshots: dict[int, list[tuple[Snapshot, float]]] = {}
        """By shard the snapshots that may be asked for, with the time of the last question."""
        self._is_taking: set[int] = set()
        self._pulls = asyncio.Semaphore(PULLS_AT_ONCE)
        self._started = self._loop.time()
        self._created: dict[int, float] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self.taken = self.installed = self.received_bytes = 0
        """Snapshots made here and installed here since the start, and what came for the latter."""
        cluster.on_led = self._heard_of
        cluster.handlers.update(
            create_replica=self.create_replica,
            add_learner=self.add_learner,
            change_members=self.change_members,
            transfer_leader=self.transfer_leader,
            snapshot_chunk=self.snapshot_chunk,
            snapshot_done=self.snapshot_done,
        )

    def close(self) -> list["asyncio.Task[None]"]:
        """Cancel what is under way; the caller awaits the tasks."""
        for task in self._tasks:
            task.cancel()
        return list(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": f"{task.get_name()} failed", "exception": error, "task": task})

    # --- members -----------------------------------------------------------------------------------------------------

    async def create_replica(self, shard: int, replica_id: int) -> None:
        """Hold a blank replica that waits for its leader's snapshot. Done already is fine."""
        if node_of(replica_id) != self._cluster.number:
            raise Unprocessable(f"Replica {replica_id} belongs to node {node_of(replica_id)}, not to {self._cluster.number}.")
        present = self._node.shards.held(shard)
        if present is not None:
            if present.group.replica_id == replica_id:
                return
            if present.applied_index:
                raise Unprocessable(f"This node holds another replica of shard {shard} already.", shard=shard)
            await self._node.holdings.drop_replica(shard, present.group.replica_id)
        await self._node.holdings.create_replica(shard, replica_id)
        self._created[shard] = self._loop.time()

    async def add_learner(self, shard: int, node: int) -> int:
        """Give a node a new replica of a shard led here, as a learner. Returns its id; one that is there already is given back."""
        leader = self._cluster.leading(shard)
        present = next((member for member in sorted(leader.members.members) if node_of(member) == node), None)
        if present is not None:
            return present
        replica_id = replica_id_on(node, self._random_bytes(5))
        await self._create_on(node, shard, replica_id)
        await self._change(self._cluster.leading(shard), [(ChangeKind.ADD_LEARNER, replica_id)])
        return replica_id

    async def _create_on(self, node: int, shard: int, replica_id: int) -> None:
        """Have a node make a blank replica. One that has just joined may take a moment to be connected."""
        until = self._loop.time() + CONNECT_WAIT_S
        while True:
            try:
                await self._cluster.call(node, "create_replica", (shard, replica_id), CHANGE_TIMEOUT_S)
                return
            except NotHere as refusal:
                if self._loop.time() > until:
                    # To the one who asked this node, `not_here` would mean that somebody else leads.
                    raise Unavailable(refusal.message, retry_after_s=1) from None
            await asyncio.sleep(0.05)

    async def change_members(self, shard: int, promoted: tuple[int, ...], removed: tuple[int, ...]) -> None:
        """Make learners voters and take replicas out, in one joint change. What is so already is left alone. Raises `Unprocessable` for a
        learner that is not close behind, and for the leader itself: its leadership is handed over first."""
        leader = self._cluster.leading(shard)
        status = leader.group.status()
        progress = {one.replica_id: one for one in status.progress}
        changes: list[tuple[int, int]] = []
        for replica_id in promoted:
            if replica_id in leader.members.voters:
                continue
            known = progress.get(replica_id)
            if known is None:
                raise Unprocessable(f"Replica {replica_id} is no member of shard {shard}.", shard=shard)
            if known.match_index + CAUGHT_UP_ENTRIES < status.last_index or not known.recent_active:
                raise Unprocessable(f"Replica {replica_id} of shard {shard} is too far behind to vote.", shard=shard)
            changes.append((ChangeKind.ADD_VOTER, replica_id))
        for replica_id in removed:
            if replica_id == leader.group.replica_id:
                raise Unprocessable(f"Replica {replica_id} leads shard {shard}; hand its leadership over first.", shard=shard)
            if replica_id in leader.members.members:
                changes.append((ChangeKind.REMOVE, replica_id))
        if changes:
            await self._change(leader, changes)

    async def _change(self, leader: Replica, changes: list[tuple[int, int]]) -> None:
        """Propose a change of members and wait until it is in force and no longer joint."""
        engine = self._node.holdings.running_engine()
        try:
            with leader.guarding():
                index, _term = leader.group.propose_conf_change(changes)
        except ConfChangeRefused as error:
            raise Unavailable(f"The members of shard {leader.shard} cannot change now: {error}.", retry_after_s=1) from None
        except (NotLeader, ProposalDropped):
            raise NotHere("This node does not lead that shard now; try again shortly.", retry_after_s=1) from None
        engine.queue(leader)
        until = self._loop.time() + CHANGE_TIMEOUT_S
        while leader.applied_index < index or leader.members.joint:
            if not leader.leads or self._loop.time() > until:
                raise Unavailable(f"The change of shard {leader.shard}'s members is still under way; look again.", retry_after_s=1)
            await asyncio.sleep(0.01)

    async def transfer_leader(self, shard: int, node: int) -> None:
        """Hand a shard's leadership to its voter on a node, and wait until this node leads no more. Nobody can write meanwhile, so one
        that is not heard is not asked, and one that does not take over is asked only so often."""
        if self._cluster.leader_of(shard) == node:
            return
        leader = self._cluster.leading(shard)
        to = next((voter for voter in leader.members.voters if node_of(voter) == node), None)
        if to is None:
            raise Unprocessable(f"Node {node} has no voter of shard {shard}.", shard=shard, node=node)
        engine, options = self._node.holdings.running_engine(), self._cluster.options
        now = self._loop.time()
        until, asks, asks_at = now + CHANGE_TIMEOUT_S, 0, now
        while leader.leads:
            status, now = leader.group.status(), self._loop.time()
            if now > until or (asks == TRANSFER_ASKS and not status.transferee):
                raise Unavailable(f"The leadership of shard {shard} was not taken over; try again.", retry_after_s=1)
            # For a moment at the end of each election timeout Raft counts nobody as heard.
            is_heard = any(one.replica_id == to and one.recent_active for one in status.progress)
            if not status.transferee and now >= asks_at and is_heard and engine.hand_over(leader, to):
                # Writes have as long a time between two transfers as during one.
                asks, asks_at = asks + 1, now + 2 * options.tick_s * options.election_ticks
            await asyncio.sleep(0.01)
        if leader.failure is not None:
            raise NotHere("This node does not lead that shard now; try again shortly.", retry_after_s=1)

    async def hand_over(self) -> None:
        """Give every leadership to the follower that is closest behind, so that nobody waits for an election when this node stops, and
        wait for the answers to writes under way. What nobody can take stays: a node alone has nobody to give it to."""
        until = self._loop.time() + HAND_OVER_S
        asks = 0.0
        while (now := self._loop.time()) < until:
            if now >= asks:
                # Raft gives a transfer up after an election timeout, and for a moment at the end of each counts nobody as heard.
                self._give_away({})
                asks = now + HAND_OVER_AGAIN_S
            held = [each for each in self._node.shards.all() if each.failure is None and not each.is_only_voter]
            if not any(each.group.is_leader or each.in_flight for each in held):
                break
            await asyncio.sleep(0.01)
        if self._node.engine is not None:
            # Nobody gives time any more, and tells it then.
            self._node.engine.leaderships.tell(logger)

    async def run_disk_watch(self) -> None:
        """While this node's disk is slow, give what it leads to nodes whose disks are not; where all are slow, nothing moves."""
        was_slow = False
        while True:
            await asyncio.sleep(DISK_LOOK_S)
            is_slow = self._cluster.has_slow_disk
            if is_slow != was_slow:
                self._cluster.news.set()
            if is_slow:
                given = self._give_away(self._cluster.slow)
                if given or not was_slow:
                    logger.warning("the disk is slow; %d leaderships are handed to other nodes", given)
            elif was_slow:
                logger.info("the disk is as quick as it should be again")
            was_slow = is_slow

    def _give_away(self, spared: Mapping[int, bool]) -> int:
        """Begin to hand each leadership to the follower that is closest behind, but not to a `spared` node. Returns how many."""
        engine = self._node.engine
        given = 0
        for replica in self._node.shards.all():
            if engine is None or not replica.leads:
                continue
            own, voters = replica.group.replica_id, replica.members.voters
            status = replica.group.status()
            others = [one for one in status.progress if one.recent_active and one.replica_id in voters and one.replica_id != own]
            if any(one.replica_id == status.transferee for one in others):
                continue  # it is about to take over; asking another one would begin anew
            able = [one for one in others if not spared.get(node_of(one.replica_id), False)]
            best = max(able, key=lambda one: one.match_index, default=None)
            if best is not None and engine.hand_over(replica, best.replica_id):
                given += 1
        return given

    def _heard_of(self, node: int, led: Led) -> None:
        """A leader says who belongs to its shard: a replica here that does not, at an index that it has passed, is over."""
        replica = self._node.shards.held(led.shard)
        if (
            replica is None
            or replica.group.replica_id in led.members
            or led.term < (replica.applied_term if replica.group.poisoned else replica.group.term)
            or led.applied < replica.applied_index
        ):
            return
        age_s = self._loop.time() - self._created.get(led.shard, self._started)
        if replica.applied_index or age_s > BLANK_KEPT_S:
            self._spawn(self._node.holdings.drop_replica(led.shard, replica.group.replica_id), "drop replica")

    # --- snapshots, on the leader -------------------------------------------------------------------------------------

    async def run_snapshots(self) -> None:
        """Take the snapshots that followers need, and remove those that nobody asks for any more."""
        while True:
            await asyncio.sleep(SNAPSHOT_LOOK_S)
            for replica in self._node.shards.all():
                if replica.is_resting:
                    continue  # its members have everything
                wanted = 0 if replica.failure is not None or replica.group.poisoned else replica.group.snapshot_requested
                if wanted and replica.shard not in self._is_taking:
                    self._is_taking.add(replica.shard)
                    self._spawn(self._take(replica), "take snapshot")
            self._discard_old()

    async def _take(self, replica: Replica) -> None:
        try:
            snapshot = await self._node.holdings.take_snapshot(replica.shard)
        except (Refusal, StorageError) as error:
            logger.warning("no snapshot of shard %d: %s", replica.shard, error)
            await asyncio.sleep(1.0)
            return
        finally:
            self._is_taking.discard(replica.shard)
        self.taken += 1
        self._snapshots.setdefault(replica.shard, []).append((snapshot, self._loop.time()))
        if self._node.shards.held(replica.shard) is replica and replica.failure is None:
            manifest = snapshot.manifest
            if (engine := self._node.engine) is not None:
                with suppress(Unavailable), replica.guarding():
                    replica.group.set_snapshot(manifest.index, manifest.term, manifest.conf_state, manifest.encode())
                    engine.queue(replica)

    def _discard_old(self) -> None:
        now = self._loop.time()
        for shard, kept in list(self._snapshots.items()):
            for snapshot, asked in kept:
                if now - asked > SNAPSHOT_KEPT_S:
                    if snapshot is kept[-1][0]:
                        self._forget_snapshot(shard)
                    snapshot.discard()
            self._snapshots[shard] = [each for each in kept if now - each[1] <= SNAPSHOT_KEPT_S]
            if not self._snapshots[shard]:
                del self._snapshots[shard]

    def _forget_snapshot(self, shard: int) -> None:
        replica = self._node.shards.held(shard)
        if replica is not None and replica.failure is None:
            with suppress(Unavailable), replica.guarding():
                replica.group.clear_snapshot()

    async def snapshot_chunk(self, shard: int, index: int, number: int) -> bytes:
        """A chunk of a snapshot that was announced. Raises `Unprocessable` if it is gone."""
        kept = self._snapshots.get(shard, [])
        for place, (snapshot, _) in enumerate(kept):
            if snapshot.manifest.index == index:
                kept[place] = (snapshot, self._loop.time())
                if (replica := self._node.shards.held(shard)) is not None:
                    replica.note_snapshot()
                try:
                    return await asyncio.to_thread(snapshot.chunk, number)
                except OSError as error:
                    raise Unavailable("The snapshot cannot be read now.", retry_after_s=1, why=str(error)) from None
        raise Unprocessable(f"There is no snapshot of shard {shard} at entry {index} here.", shard=shard)

    async def snapshot_done(self, shard: int, replica_id: int, is_installed: bool) -> None:
        """A follower installed the snapshot that it was sent, or gave it up."""
        replica, engine = self._node.shards.held(shard), self._node.engine
        if replica is not None and replica.leads and engine is not None:
            with replica.guarding():
                replica.group.report_snapshot(replica_id, is_installed)
            engine.queue(replica)

    # --- snapshots, on the follower ----------------------------------------------------------------------------------

    def install(self, replica: Replica, ready: Ready) -> None:
        """Raft wants this replica replaced by a snapshot: fetch it from the leader and install it."""
        assert ready.snapshot is not None
        self._spawn(self._install(replica, ready.snapshot[3], node_of(replica.group.leader_id)), "install snapshot")

    async def _install(self, replica: Replica, announced: bytes, leader: int) -> None:
        is_installed = False
        async with self._pulls:
            try:
                await self._pull(replica, Manifest.decode(announced), leader)
                is_installed = True
            except (Refusal, SnapshotRefused, StorageError, OSError) as error:
                logger.warning("snapshot of shard %d not installed: %s", replica.shard, error)
                # A node whose disk failed or filled up starts over as a whole.
                with suppress(Unavailable, StorageError):
                    await self._node.holdings.reopen_replica(replica)
        try:
            await self._cluster.call(leader, "snapshot_done", (replica.shard, replica.group.replica_id, is_installed), 5.0)
        except Refusal:
            pass  # A leader that is gone has nothing to hear, and a new one asks for itself.

    async def _pull(self, replica: Replica, manifest: Manifest, leader: int) -> None:
        incoming = self._node.holdings.incoming_snapshot(manifest)
        try:
            for number in incoming.missing:
                chunk = await self._cluster.call(leader, "snapshot_chunk", (manifest.shard, manifest.index, number))
                self.received_bytes += len(chunk)
                await asyncio.to_thread(incoming.add, number, chunk)
            await self._node.holdings.install_snapshot(incoming, replica.group.replica_id)
            self.installed += 1
        except BaseException:
            if self._node.shards.held(manifest.shard) is replica:
                await asyncio.to_thread(incoming.discard)
            raise
