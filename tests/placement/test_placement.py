"""The planner: examples one can check by hand, then random clusters whose steps are taken one by one in random order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations, product
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context_operator.placement import (
    TRANSFERS_MAX,
    AddLearner,
    ClusterInfo,
    NodeInfo,
    Plan,
    Promote,
    Remove,
    ReplicaInfo,
    ShardInfo,
    Step,
    TransferLeader,
    least_moves,
    plan,
)
from context_operator.spread import Demand, spread

SYSTEM = 65535
MANY = 1_000


def shard(number: int, *nodes: int, leader: int | None = 0, learners: Sequence[int] = (), ready: bool = True) -> ShardInfo:
    """The first node leads unless `leader` says otherwise. A replica id tells its shard and node; learners are `ready` or catching up."""
    voters = [ReplicaInfo(number * 100 + node, node, True, True) for node in nodes]
    others = [ReplicaInfo(number * 100 + node, node, False, ready) for node in learners]
    return ShardInfo(number, nodes[0] if leader == 0 else leader, (*voters, *others))


def cluster(nodes: Sequence[NodeInfo] | int, *shards: ShardInfo, factor: int = 3) -> ClusterInfo:
    listed = [NodeInfo(number) for number in range(1, nodes + 1)] if isinstance(nodes, int) else nodes
    return ClusterInfo(tuple(listed), shards, factor, SYSTEM)


def nodes_with(count: int, **changed: NodeInfo) -> list[NodeInfo]:
    by_number = {node.number: node for node in changed.values()}
    return [by_number.get(number, NodeInfo(number)) for number in range(1, count + 1)]


def voters(of: ShardInfo) -> list[int]:
    return sorted(replica.node for replica in of.replicas if replica.is_voter)


def counts(state: ClusterInfo, shards: Iterable[ShardInfo] | None = None) -> dict[int, int]:
    of = [s for s in state.shards if s.shard != SYSTEM] if shards is None else shards
    return {node.number: sum(node.number in voters(s) for s in of) for node in state.nodes}


def leaders(state: ClusterInfo) -> dict[int, int]:
    return {node.number: sum(s.leader == node.number for s in state.shards if s.shard != SYSTEM) for node in state.nodes}


class Cluster:
    """Takes steps the way nodes do, and checks at each what a step must never do."""

    def __init__(self, state: ClusterInfo) -> None:
        self.state = state
        self.taken: list[Step] = []
        self._next_id = 10_000_000
        usable = sum(node.alive and not node.draining for node in state.nodes)
        self._usable = usable
        self._wanted = {s.shard: odd(min(5 if s.shard == SYSTEM else state.replication_factor, usable)) for s in state.shards}

    def take(self, step: Step) -> None:
        before = next(s for s in self.state.shards if s.shard == step.shard)
        assert before.leader is not None and not before.is_joint
        after = self._after(before, step)
        self._check(before, after)
        self.state = replace(self.state, shards=tuple(after if s.shard == step.shard else s for s in self.state.shards))
        self.taken.append(step)

    def _after(self, before: ShardInfo, step: Step) -> ShardInfo:
        by_id = {replica.replica_id: replica for replica in before.replicas}
        match step:
            case AddLearner():
                node = next(node for node in self.state.nodes if node.number == step.node)
                assert node.alive and not node.draining and not node.cordoned
                self._next_id += 1
                return replace(before, replicas=(*before.replicas, ReplicaInfo(self._next_id, step.node, False, False)))
            case Promote():
                assert step.replica_ids or step.removes
                assert all(by_id[promoted].is_caught_up and not by_id[promoted].is_voter for promoted in step.replica_ids)
                assert all(by_id[removed].is_voter and by_id[removed].node != before.leader for removed in step.removes)
                kept = [r for r in before.replicas if r.replica_id not in step.removes]
                return replace(before, replicas=tuple(replace(r, is_voter=r.is_voter or r.replica_id in step.replica_ids) for r in kept))
            case Remove():
                assert not by_id[step.replica_id].is_voter
                return replace(before, replicas=tuple(r for r in before.replicas if r.replica_id != step.replica_id))
            case TransferLeader():
                to = next(r for r in before.replicas if r.node == step.to_node)
                assert to.is_voter and to.is_caught_up and self.is_alive(to.node) and step.to_node != before.leader
                return replace(before, leader=step.to_node)

    def _check(self, before: ShardInfo, after: ShardInfo) -> None:
        held = [replica.node for replica in after.replicas]
        assert len(held) == len(set(held)), "two replicas of a shard on a node"
        for one in (before, after):
            assert 2 * sum(map(self.is_alive, voters(one))) > len(voters(one)), "no live majority"
        live_before, live_after = (sum(map(self.is_alive, voters(one))) for one in (before, after))
        assert live_after >= min(self._wanted[before.shard], live_before)

    def is_alive(self, number: int) -> bool:
        return any(node.number == number and node.alive for node in self.state.nodes)

    def catch_up(self, may: Callable[[], bool] = lambda: True) -> None:
        def caught(replica: ReplicaInfo) -> ReplicaInfo:
            return replace(replica, is_caught_up=replica.is_caught_up or (self.is_alive(replica.node) and may()))

        self.state = replace(self.state, shards=tuple(replace(s, replicas=tuple(map(caught, s.replicas))) for s in self.state.shards))

    def moving(self) -> int:
        """Shards with a learner of a move. One of the system shard that waits for its dead node is there for good."""

        def is_move(of: ShardInfo, replica: ReplicaInfo) -> bool:
            return not replica.is_voter and (of.shard != SYSTEM or (not replica.is_caught_up and self.is_alive(replica.node)))

        return sum(any(is_move(s, replica) for replica in s.replicas) for s in self.state.shards)

    def run(self, moves_max: int = MANY, random: Random | None = None) -> Plan:
        """Plans and steps to the end. With `random`, some steps are not taken, the order is any, and learners catch up some time."""
        moving_max = max(moves_max, self.moving())
        moves_left = MANY
        for _ in range(400 + 40 * len(self.state.shards)):
            now = plan(self.state, moves_max)
            assert now.moves_left <= moves_left
            moves_left = now.moves_left
            steps = list(now.steps)
            assert len({step.shard for step in steps}) == len(steps)
            assert sum(isinstance(step, TransferLeader) for step in steps) <= TRANSFERS_MAX
            if random is not None and steps:
                random.shuffle(steps)
                steps = steps[: random.randint(1, len(steps))]
            for step in steps:
                self.take(step)
            assert self.moving() <= moving_max
            catching_up = any(self.is_alive(r.node) and not r.is_caught_up for s in self.state.shards for r in s.replicas)
            self.catch_up(may=(lambda: random.random() < 0.7) if random is not None and random.random() < 0.9 else lambda: True)
            if not steps and not catching_up:
                return now
        raise AssertionError("the plans never come to an end")

    def joint_changes(self, number: int) -> list[Promote]:
        return [step for step in self.taken if isinstance(step, Promote) and step.shard == number]

    def moved(self) -> int:
        return sum(isinstance(step, AddLearner) and step.shard != SYSTEM for step in self.taken)


def odd(number: int) -> int:
    return max([0, *range(1, number + 1, 2)])


class TestExamples:
    def test_one_replica_grows_to_three_in_one_joint_change(self) -> None:
        it = Cluster(cluster(3, shard(7, 1)))
        assert it.run() == Plan((), 0, ())
        assert it.taken[0] == AddLearner(7, 2)
        assert [(len(change.replica_ids), change.removes) for change in it.joint_changes(7)] == [(2, ())]
        assert voters(it.state.shards[0]) == [1, 2, 3]

    def test_the_second_learner_waits_for_the_first(self) -> None:
        catching_up = cluster(3, shard(7, 1, learners=[2], ready=False))
        assert plan(catching_up, MANY) == Plan((), 2, ())
        assert plan(cluster(3, shard(7, 1, learners=[2])), MANY).steps == (AddLearner(7, 3),)

    def test_five_nodes_take_their_share_from_three(self) -> None:
        state = cluster(5, *(shard(number, 1, 2, 3, leader=1 + number % 3) for number in range(32)))
        it = Cluster(state)
        it.run(moves_max=2)
        # 96 replicas: 20 for one of the old nodes, 19 for each other.
        assert sorted(counts(it.state).values()) == [19, 19, 19, 19, 20]
        assert it.moved() == least_moves(state) == 96 - 20 - 19 - 19
        assert sorted(leaders(it.state).values()) == [6, 6, 6, 7, 7]

    def test_draining_two_of_five_nodes_leaves_three_full_ones(self) -> None:
        placed = [shard(number, *(1 + (number + offset) % 5 for offset in range(3))) for number in range(10)]
        drained = nodes_with(5, a=NodeInfo(4, draining=True), b=NodeInfo(5, draining=True))
        it = Cluster(cluster(drained, *placed))
        assert it.run(moves_max=1) == Plan((), 0, ())
        assert counts(it.state) == {1: 10, 2: 10, 3: 10, 4: 0, 5: 0}
        assert sorted(leaders(it.state).values()) == [0, 0, 3, 3, 4]

    def test_a_dead_node_keeps_its_replicas_and_says_so(self) -> None:
        dead = nodes_with(4, a=NodeInfo(3, alive=False))
        now = plan(cluster(dead, shard(0, 1, 2, 3), shard(1, 4, 1, 2), shard(2, 2, 4, 3)), MANY)
        assert now == Plan((), 0, ("Node 3 is dead: 2 shards are short of a voter until it comes back or is drained.",))

    def test_a_dead_node_that_is_drained_is_replaced(self) -> None:
        dead = nodes_with(4, a=NodeInfo(3, alive=False, draining=True))
        it = Cluster(cluster(dead, shard(0, 1, 2, 3)))
        assert it.run() == Plan((), 0, ())
        assert it.taken == [AddLearner(0, 4), Promote(0, (10_000_001,), (3,))]

    def test_a_replica_on_a_node_that_is_gone_is_replaced(self) -> None:
        it = Cluster(cluster([NodeInfo(1), NodeInfo(2), NodeInfo(4)], shard(0, 1, 2, 3)))
        it.run()
        assert voters(it.state.shards[0]) == [1, 2, 4]

    def test_a_cordoned_node_takes_nothing(self) -> None:
        cordoned = nodes_with(4, a=NodeInfo(4, cordoned=True))
        assert plan(cluster(cordoned, *(shard(number, 1, 2, 3, leader=1 + number) for number in range(3))), MANY) == Plan((), 0, ())

    def test_leaders_leave_a_cordoned_node_its_replicas_stay(self) -> None:
        cordoned = nodes_with(3, a=NodeInfo(1, cordoned=True))
        now = plan(cluster(cordoned, *(shard(number, 1, 2, 3) for number in range(6))), MANY)
        assert [type(step) for step in now.steps] == [TransferLeader] * TRANSFERS_MAX
        it = Cluster(cluster(cordoned, *(shard(number, 1, 2, 3) for number in range(6))))
        it.run()
        assert (leaders(it.state), it.moved()) == ({1: 0, 2: 3, 3: 3}, 0)

    def test_two_replicas_in_one_zone_are_taken_apart(self) -> None:
        zoned = [NodeInfo(1, "a"), NodeInfo(2, "a"), NodeInfo(3, "b"), NodeInfo(4, "c")]
        it = Cluster(cluster(zoned, shard(0, 1, 2, 3)))
        it.run()
        # One move: the leader stays where it was, or hands over first.
        assert it.moved() == 1 and voters(it.state.shards[0])[1:] == [3, 4]

    def test_two_zones_share_three_replicas_as_evenly_as_they_can(self) -> None:
        zoned = [NodeInfo(1, "a"), NodeInfo(2, "a"), NodeInfo(3, "a"), NodeInfo(4, "b")]
        it = Cluster(cluster(zoned, shard(0, 1, 2, 3), shard(1, 1, 2, 3)))
        it.run()
        assert counts(it.state)[4] == 2 and it.moved() == 2

    def test_factor_three_on_two_nodes_is_blocked_with_a_sentence(self) -> None:
        assert plan(cluster(2, shard(0, 1), shard(1, 2)), MANY) == Plan(
            (), 0, ("The replication factor is 3, but only 2 nodes are usable: shards get 1 voters.",)
        )

    def test_cordoned_nodes_can_make_a_shard_wait_for_voters(self) -> None:
        cordoned = nodes_with(3, a=NodeInfo(3, cordoned=True))
        assert plan(cluster(cordoned, shard(0, 1)), MANY) == Plan((), 0, ("1 shards can't get 3 voters: only 2 nodes take new replicas.",))

    def test_a_shard_without_a_leader_is_left_alone(self) -> None:
        drained = nodes_with(4, a=NodeInfo(1, draining=True))
        now = plan(cluster(drained, shard(0, 1, 2, 3, leader=None)), MANY)
        assert (now.steps, now.blocked) == ((), ("Shard 0 has no leader.",))

    def test_a_shard_without_a_live_majority_is_left_alone(self) -> None:
        dead = nodes_with(4, a=NodeInfo(1, alive=False, draining=True), b=NodeInfo(2, alive=False, draining=True))
        now = plan(cluster(dead, shard(0, 3, 1, 2)), MANY)
        assert (now.steps, now.blocked[-1]) == ((), "Shard 0 has 1 live voters of 3, which is no majority.")

    def test_a_shard_in_a_joint_change_is_left_alone_and_counts_as_moving(self) -> None:
        joint = replace(shard(0, 1, 2, 3), is_joint=True)
        growing = shard(1, 1)
        assert plan(cluster(3, joint, growing), 1).steps == ()
        assert plan(cluster(3, joint, growing), 2).steps == (AddLearner(1, 2),)

    def test_only_so_many_shards_move_at_once(self) -> None:
        state = cluster(3, *(shard(number, 1) for number in range(9)), shard(9, 1, learners=[2], ready=False))
        assert len(plan(state, 4).steps) == 3

    def test_the_last_node_can_be_drained_of_nothing(self) -> None:
        now = plan(cluster([NodeInfo(1, draining=True)], shard(0, 1)), MANY)
        assert (now.steps, now.blocked[-1]) == ((), "Shard 0 can't leave node 1: no other node may take it.")

    def test_a_single_voter_that_leads_hands_over_before_it_leaves(self) -> None:
        it = Cluster(cluster([NodeInfo(1, draining=True), NodeInfo(2)], shard(0, 1), factor=1))
        it.run()
        learner = it.state.shards[0].replicas[0].replica_id
        assert it.taken == [AddLearner(0, 2), Promote(0, (learner,), ()), TransferLeader(0, 2), Promote(0, (), (1,))]

    def test_a_learner_of_a_dead_node_is_removed(self) -> None:
        dead = nodes_with(5, a=NodeInfo(4, alive=False))
        drained = [replace(node, draining=node.number == 1) for node in dead]
        it = Cluster(cluster(drained, shard(0, 1, 2, 3, learners=[4], ready=False)))
        it.run()
        assert it.taken[0] == Remove(0, 4) and voters(it.state.shards[0]) == [2, 3, 5]

    def test_what_must_leave_goes_only_while_a_majority_lives(self) -> None:
        nodes = [NodeInfo(1), NodeInfo(2, draining=True), NodeInfo(3, alive=False)]
        now = plan(cluster(nodes, shard(0, 1, 2, 3)), MANY)
        assert now.steps == () and "Shard 0 can't leave node 2: no other node may take it." in now.blocked

    def test_the_successor_of_a_single_voter_asks_for_no_further_one(self) -> None:
        it = Cluster(cluster(nodes_with(3, a=NodeInfo(1, draining=True)), shard(0, 1)))
        it.run()
        assert (it.moved(), len(voters(it.state.shards[0]))) == (1, 1)

    def test_draining_one_of_three_leaves_three_voters_until_a_fourth_node_comes(self) -> None:
        nodes = nodes_with(3, a=NodeInfo(3, draining=True))
        now = plan(cluster(nodes, shard(0, 1, 2, 3)), MANY)
        assert now.steps == () and "Shard 0 can't leave node 3: no other node may take it." in now.blocked
        it = Cluster(cluster([*nodes, NodeInfo(4)], shard(0, 1, 2, 3)))
        it.run()
        assert voters(it.state.shards[0]) == [1, 2, 4]

    def test_a_smaller_factor_takes_away_what_is_surplus(self) -> None:
        it = Cluster(cluster(5, *(shard(number, *range(1, 6), leader=1 + number) for number in range(5))))
        it.run()
        assert it.moved() == 0 and counts(it.state) == dict.fromkeys(range(1, 6), 3)

    def test_the_system_shard_has_five_voters_and_learners_on_the_rest(self) -> None:
        it = Cluster(cluster(7, shard(SYSTEM, 1)))
        it.run(moves_max=1)
        assert len(voters(it.state.shards[0])) == 5 and len(it.state.shards[0].replicas) == 7
        assert [len(change.replica_ids) for change in it.joint_changes(SYSTEM)] == [4]

    def test_the_system_shard_of_four_nodes_has_three_voters_and_a_learner(self) -> None:
        nodes = nodes_with(5, a=NodeInfo(2, draining=True))
        it = Cluster(cluster(nodes, shard(SYSTEM, 2, 1, 3, 4, 5)))
        it.run()
        held = {replica.node: replica.is_voter for replica in it.state.shards[0].replicas}
        assert sorted(held) == [1, 3, 4, 5] and sorted(held.values()) == [False, True, True, True]

    def test_a_learner_of_the_system_shard_waits_for_its_dead_node(self) -> None:
        dead = nodes_with(7, a=NodeInfo(7, alive=False))
        assert plan(cluster(dead, shard(SYSTEM, 1, 2, 3, 4, 5, learners=[6])), MANY) == Plan((), 0, ())
        assert plan(cluster(dead, shard(SYSTEM, 1, 2, 3, 4, 5, learners=[6, 7], ready=True)), MANY) == Plan((), 0, ())

    def test_a_learner_of_the_system_shard_to_be_promoted_is_no_move_that_was_begun(self) -> None:
        moving = shard(0, 1, learners=[2], ready=False)
        state = cluster(5, moving, shard(SYSTEM, 4, 5, learners=[3]))
        assert plan(state, 1).steps == ()
        assert plan(state, 2).steps == (AddLearner(SYSTEM, 1),)

    def test_a_cordoned_node_can_make_the_system_shard_wait_for_voters(self) -> None:
        cordoned = nodes_with(3, a=NodeInfo(1, cordoned=True))
        last = Cluster(cluster(cordoned, shard(0, 2), shard(SYSTEM, 2), factor=1)).run()
        assert last.blocked == ("The system shard can't get 3 voters: only 2 nodes take new replicas.",)

    def test_a_leader_stays_on_a_cordoned_node_while_the_last_change_of_voters_waits(self) -> None:
        nodes = [NodeInfo(1, cordoned=True), NodeInfo(2), NodeInfo(3, alive=False, draining=True)]
        # Node 2 has one replica more than node 1, so shard 0 shall stay on the cordoned node; shard 1 holds the only place to move.
        stuck = shard(1, 2, leader=None, learners=[1])
        handed_over = cluster(nodes, shard(0, 1, 2, 3), stuck, factor=1)
        assert plan(handed_over, 1).steps == ()
        assert plan(handed_over, 2).steps == (Promote(0, (), (3, 2)),)
        assert plan(cluster(nodes, shard(0, 2, 1, 3), stuck, factor=1), 1).steps == (TransferLeader(0, 1),)


ANY_SHAPE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

seeds = st.integers(0, 2**32)


@st.composite
def states(draw: st.DrawFn, zones: bool = True, healthy: bool = False) -> ClusterInfo:
    """Any cluster, or with `healthy` one where every node is usable and every shard complete."""
    count = draw(st.integers(1, 7))
    names = st.sampled_from(["a", "b", "c"]) if zones and draw(st.booleans()) else st.just("")
    flag = st.just(False) if healthy else st.sampled_from([False, False, False, True])
    nodes = [NodeInfo(n, draw(names), not draw(flag), draw(flag), draw(flag)) for n in range(1, count + 1)]
    factor = draw(st.sampled_from([1, 3, 5]))
    random = Random(draw(st.integers(0, 2**32)))
    # Some nodes hold nothing yet, as after a scale-up.
    old = random.sample(range(1, count + 1), random.randint(min(count, odd(min(factor, count))), count))
    shards = []
    for number in [*range(draw(st.integers(1, 8) | st.integers(1, 40))), SYSTEM]:
        size = odd(min(5 if number == SYSTEM else factor, len(old))) if healthy else random.randint(1, min(5, len(old)))
        nodes_of = random.sample(old, size)
        spare = [n for n in range(1, count + 1) if n not in nodes_of]
        others = random.sample(spare, random.randint(0, len(spare))) if not healthy and random.random() < 0.2 else []
        live = [n for n in nodes_of if nodes[n - 1].alive]
        led = 2 * len(live) > len(nodes_of) and (healthy or random.random() < 0.95)
        shards.append(shard(number, *nodes_of, leader=random.choice(live) if led else None, learners=others, ready=random.random() < 0.5))
    return cluster(nodes, *shards, factor=factor)


def fewest_moves(state: ClusterInfo) -> int:
    """What every node has above its share, the larger shares given to those that have most."""
    held = sorted(counts(state).values(), reverse=True)
    share, larger = divmod(sum(held), len(held))
    return sum(max(0, count - share - (at < larger)) for at, count in enumerate(held))


class TestAnyCluster:
    @ANY_SHAPE
    @given(states(), st.integers(1, 8), seeds)
    def test_steps_in_any_order_end_with_all_that_is_possible(self, state: ClusterInfo, moves_max: int, seed: int) -> None:
        it = Cluster(state)
        last = it.run(moves_max, Random(seed))
        usable = [node for node in state.nodes if node.alive and not node.draining]
        no_leader = [s for s in it.state.shards if s.leader is None]
        waiting = any(not node.alive and not node.draining for node in state.nodes)
        if no_leader or waiting:
            return
        takers = [node.number for node in usable if not node.cordoned]
        if not last.blocked:
            assert last.moves_left == 0
            for s in it.state.shards:
                assert len(voters(s)) == odd(min(5 if s.shard == SYSTEM else state.replication_factor, len(usable)))
        for s in it.state.shards:
            assert all(node in [n.number for n in usable] for node in [r.node for r in s.replicas]) or last.blocked
            able = [node for node in voters(s) if node in takers]
            assert s.leader in able or not able
            if s.shard == SYSTEM and usable and not last.blocked:
                assert all(node in [r.node for r in s.replicas] for node in takers)

    @ANY_SHAPE
    @given(states(zones=False, healthy=True), st.integers(1, 8), seeds)
    def test_without_zones_all_is_balanced_by_the_fewest_moves(self, state: ClusterInfo, moves_max: int, seed: int) -> None:
        size = odd(min(state.replication_factor, len(state.nodes)))
        complete = all(len(voters(s)) == size for s in state.shards if s.shard != SYSTEM)
        it = Cluster(state)
        last = it.run(moves_max, Random(seed))
        assert (last.moves_left, len(last.blocked)) == (0, int(size < state.replication_factor))
        if size == 1 < state.replication_factor:
            # Two nodes, on their way to three: each will have everything, so that nothing is moved for balance alone.
            assert not complete or it.moved() == least_moves(state) == 0
            return
        for held in (counts(it.state), leaders(it.state)):
            assert max(held.values()) - min(held.values()) <= 1
        if complete:
            joined = sum(len(change.replica_ids) for change in it.taken if isinstance(change, Promote) and change.shard != SYSTEM)
            assert it.moved() == joined == least_moves(state) == fewest_moves(state)

    @ANY_SHAPE
    @given(states(healthy=True), seeds)
    def test_replicas_are_as_even_over_the_zones_as_can_be(self, state: ClusterInfo, seed: int) -> None:
        it = Cluster(state)
        assert it.run(4, Random(seed)).moves_left == 0
        sizes = [sum(node.zone == zone for node in state.nodes) for zone in sorted({node.zone for node in state.nodes})]
        for s in it.state.shards:
            zones = [state.nodes[node - 1].zone for node in voters(s)]
            held = sorted(zones.count(zone) for zone in sorted({node.zone for node in state.nodes}))
            fits = [split for split in product(*(range(size + 1) for size in sizes)) if sum(split) == len(zones)]
            assert sum(n * n for n in held) == min(sum(n * n for n in split) for split in fits)

    @ANY_SHAPE
    @given(states())
    def test_the_order_in_which_nodes_and_shards_are_listed_changes_nothing(self, state: ClusterInfo) -> None:
        turned = replace(state, nodes=state.nodes[::-1], shards=state.shards[::-1])
        assert plan(turned, 3).steps == plan(state, 3).steps


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 2), min_size=4, max_size=4)), min_size=1, max_size=3), st.data())
def test_no_other_spread_is_better(wanted: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    zones = {node: data.draw(st.sampled_from("ab")) for node in range(1, 5)}
    demands = [Demand(size, dict(enumerate(costs, start=1))) for size, costs in wanted]

    def cost(chosen: Sequence[Sequence[int]]) -> tuple[int, int, int]:
        in_zones = [[zones[node] for node in nodes] for nodes in chosen]
        uneven = sum(names.count(zone) ** 2 for names in in_zones for zone in "ab")
        load = sum(sum(node in nodes for nodes in chosen) ** 2 for node in zones)
        return uneven, load, sum(demand.costs[node] for demand, nodes in zip(demands, chosen, strict=True) for node in nodes)

    every = product(*(list(combinations(zones, demand.size)) for demand in demands))
    assert cost(spread(demands, zones)) == min(map(cost, every))


def test_plans_for_thirty_nodes_come_to_an_end() -> None:
    zoned = [NodeInfo(number, "abc"[number % 3]) for number in range(1, 31)]
    it = Cluster(cluster(zoned, *(shard(number, 1, 2, 3) for number in range(32)), shard(SYSTEM, 1, 2, 3)))
    it.run()
    held = counts(it.state)
    assert max(held.values()) - min(held.values()) <= 1 and it.moved() == 96 - 12
