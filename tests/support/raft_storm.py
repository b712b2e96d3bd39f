"""What happens to a simulated Raft cluster: a storm of seeded events, and the calm after it.

Knows which events there are and how likely each is. The replicas, disks and invariants are `raft_simulation`'s.
"""

from collections import Counter

from context_node.raft import ChangeKind, ConfChangeRefused, ConfState, ProposalDropped
from support.raft_simulation import Broken, Cluster, Replica

EVENTS = {
    "deliver": 400,
    "sync": 220,
    "tick": 160,
    "propose": 120,
    "read": 20,
    "drop": 20,
    "duplicate": 15,
    "checkpoint": 12,
    "crash": 6,
    "restart": 12,
    "change": 10,
    "transfer": 4,
}


class Storm:
    """Runs events drawn from the cluster's seed, and counts those that did something."""

    def __init__(self, seed: int, voters: int = 3, *, hasty: bool = False) -> None:
        self.cluster = Cluster(seed, voters, hasty=hasty)
        self.random = self.cluster.random
        self.counts: Counter[str] = Counter()
        self.names = list(EVENTS)
        self.weights = list(EVENTS.values())

    def run(self, events: int) -> None:
        """Lets `events` events happen."""
        for name in self.random.choices(self.names, self.weights, k=events):
            replica = self.random.choice(list(self.cluster.replicas.values()))
            getattr(self, name)(replica)

    def deliver(self, _: Replica, position: int | None = None) -> None:
        network = self.cluster.network
        if not network:
            return
        # Mostly in order, sometimes not: a window at the front of the network.
        place = self.random.randrange(min(len(network), 8)) if position is None else position
        to, message = network.pop(place)
        replica = self.cluster.replicas[to]
        if replica.group is not None:
            self.counts["delivered" if replica.group.step(message) else "ignored"] += 1
            replica.turn()

    def drop(self, _: Replica) -> None:
        if self.cluster.network:
            self.cluster.network.pop(self.random.randrange(len(self.cluster.network)))

    def duplicate(self, _: Replica) -> None:
        if self.cluster.network:
            self.cluster.network.append(self.random.choice(self.cluster.network))

    def sync(self, replica: Replica) -> None:
        replica.sync()
        replica.turn()

    def tick(self, replica: Replica) -> None:
        if replica.group is not None:
            replica.group.tick()
            self.report_snapshots(replica)
            replica.turn()

    def report_snapshots(self, leader: Replica) -> None:
        """Offers a snapshot that is asked for; gives up on one now and then, so that none is waited for for ever."""
        if leader.group is None or not leader.group.is_leader:
            return
        if leader.group.snapshot_requested:
            leader.offer_snapshot()
            self.counts["snapshots"] += 1
        if self.random.random() > 0.05:
            return
        for progress in leader.group.status().progress:
            if progress.state == "snapshot":
                leader.group.report_snapshot(progress.replica_id, self.random.random() < 0.5)

    def propose(self, _: Replica) -> None:
        leader = self.cluster.leader()
        if leader is None or leader.group is None:
            return
        self.cluster.counter += 1
        try:
            leader.group.propose(b"%d" % self.cluster.counter + b"." * self.random.randrange(40))
        except ProposalDropped:
            self.counts["dropped"] += 1
        leader.turn()

    def read(self, replica: Replica) -> None:
        if replica.group is None:
            return
        self.cluster.counter += 1
        context = b"read %d" % self.cluster.counter
        self.cluster.reads[context] = max(self.cluster.committed, default=0)
        replica.group.read_index(context)
        replica.turn()

    def checkpoint(self, replica: Replica) -> None:
        replica.checkpoint()

    def crash(self, replica: Replica) -> None:
        if replica.group is not None:
            replica.crash()
            self.counts["crashed"] += 1

    def restart(self, replica: Replica) -> None:
        if replica.group is None:
            replica.start()
            replica.turn()

    def transfer(self, _: Replica) -> None:
        leader = self.cluster.leader()
        if leader is not None and leader.group is not None:
            voters = leader.group.status().voters
            self.counts["transferred"] += leader.group.transfer_leader(self.random.choice(voters))
            leader.turn()

    def change(self, _: Replica) -> None:
        """Adds a learner, promotes one, or replaces a voter by a learner, through a joint configuration."""
        leader = self.cluster.leader()
        if leader is None or leader.group is None:
            return
        status = leader.group.status()
        changes: list[tuple[int, int]] = []
        if status.learners and self.random.random() < 0.8:
            changes.append((ChangeKind.ADD_VOTER, self.random.choice(status.learners)))
        elif not status.learners and len(self.cluster.replicas) < 12:
            changes.append((ChangeKind.ADD_LEARNER, self.cluster.next_id))
        if len(status.voters) > 2 and self.random.random() < 0.7:
            kind = self.random.choice((ChangeKind.REMOVE, ChangeKind.ADD_LEARNER))
            changes.append((kind, self.random.choice(status.voters)))
        try:
            leader.group.propose_conf_change(changes)
        except (ConfChangeRefused, ProposalDropped):
            self.counts["change refused"] += 1
            return
        if (ChangeKind.ADD_LEARNER, self.cluster.next_id) in changes:
            self.cluster.add_replica()
        self.counts["changed"] += 1
        leader.turn()

    def calm(self, rounds: int = 600) -> None:
        """No more faults: everything must come together again, and take a new entry."""
        for replica in self.cluster.replicas.values():
            self.restart(replica)
        target = 0
        for _ in range(rounds):
            for replica in self.cluster.replicas.values():
                self.tick(replica)
                while replica.pending:
                    self.sync(replica)
            while self.cluster.network:
                self.deliver(next(iter(self.cluster.replicas.values())), position=0)
                for replica in self.cluster.replicas.values():
                    while replica.pending:
                        self.sync(replica)
            leader = self.cluster.leader()
            if leader is None or leader.group is None:
                continue
            members = ConfState.decode(leader.state.members)
            here = [self.cluster.replicas[i] for i in (*members.voters, *members.learners)]
            if not target and not members.joint and leader.group.status().pending_change is False:
                self.propose(leader)
                target = leader.group.last_index
            elif target and all(r.state.index >= target for r in here):
                return
        raise Broken(f"no agreement after {rounds} calm rounds: {[r.group and r.group.status() for r in here]}")
