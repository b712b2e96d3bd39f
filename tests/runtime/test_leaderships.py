"""P4: who leads next may change under load. Writers are told what became of their writes, and the log says why it changed."""

import asyncio
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from context_node.contexts.refusals import OutcomeUnknown, Refusal, Unavailable
from context_node.contexts.requests import Append
from context_node.raft import MessageKind, Role, peek_message
from context_node.raft._core import sync_file
from context_node.runtime import moving
from context_node.runtime.leaderships import Leaderships, Loss
from context_node.runtime.not_here import NotHere
from context_node.runtime.pauses import Pauses
from context_node.runtime.proposals import Proposal
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD
from support.clusters import TestCluster, until
from support.running_nodes import NodeLife, history, message, run, texts_of

WRITERS = 16


def lines(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    """What was logged that begins like this."""
    return [text for text in (record.getMessage() for record in caplog.records) if re.match(pattern, text)]


class Writers:
    """Many that append to one context through one node, without a key, so that each refusal counts."""

    def __init__(self, node: NodeLife, context_id: str) -> None:
        self.said: list[str] = []
        self.refusals: list[Refusal] = []
        self._node, self._context_id = node, context_id
        self._is_over = False
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._is_over:
            number += 1
            text = f"{writer} {number}"
            try:
                await self._node.service.append(self._context_id, Append([message(text)], create=True))
                self.said.append(text)
            except Refusal as refusal:
                self.refusals.append(refusal)
                await asyncio.sleep(0.01)

    async def until_more(self, count: int) -> None:
        wanted = len(self.said) + count

        async def are_more() -> bool:
            return len(self.said) >= wanted

        await until(are_more)

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


class SlowDisks:
    """Syncs of some nodes wait until they may end: what those nodes are sent is not theirs until then."""

    def __init__(self, nodes: Iterable[NodeLife]) -> None:
        self._may_end = threading.Event()
        self._may_end.set()
        for node in nodes:
            worker: Any = node.engine._worker
            worker.sync = lambda file, outcome, worker=worker: worker.submit(lambda: self._sync(file), outcome)

    def _sync(self, file: int) -> None:
        self._may_end.wait()
        sync_file(file)

    def hold(self) -> None:
        self._may_end.clear()

    def let_go(self) -> None:
        self._may_end.set()


async def appended(node: NodeLife, text: str) -> None:
    await node.service.append("c", Append([message(text)], create=True))


async def transfer(cluster: TestCluster, shard: int, to: NodeLife) -> None:
    admin = cluster.nodes[0].node.admin
    assert admin is not None and to.node.cluster is not None
    await admin.transfer_leader(shard, to.node.cluster.number)


async def write_and_hand_over(cluster: TestCluster, leave: Callable[[NodeLife], Awaitable[None]]) -> None:
    """A leader has writes under way that only the node to lead next has on its disk, and ceases to lead."""
    leader = await cluster.leader(0)
    successor = cluster.nodes[cluster.nodes.index(leader) - 1]
    other = next(node for node in cluster.nodes if node not in (leader, successor))
    await appended(leader, "before")
    # However slow this machine is just now.
    leader.engine.replicas[0].election_ticks = 1_000
    for node in cluster.nodes:
        node.engine.disk._limit_s = 0.0
    # Then shard 0 is all that a stopping leader has to give away.
    await transfer(cluster, SYSTEM_SHARD, successor)
    await until(cluster.is_quiet)
    handed_over = leader.engine.leaderships.lost[Loss.HANDED_OVER]
    texts = [f"text {number}" for number in range(WRITERS)]

    async def are_at_the_successor() -> bool:
        led = leader.engine.replicas[0]
        matches = {one.replica_id: one.match_index for one in led.group.status().progress}
        return led.in_flight == WRITERS and matches.get(successor.engine.replicas[0].group.replica_id) == led.group.last_index

    async def leads_no_more() -> bool:
        return not leader.engine.replicas[0].group.is_leader

    disks = SlowDisks((leader, other))
    disks.hold()
    try:
        writes = [asyncio.create_task(appended(other if number % 2 else leader, text)) for number, text in enumerate(texts)]
        await until(are_at_the_successor)
        leaving = asyncio.create_task(leave(leader))
        await until(leads_no_more)
        ticks = leader.engine.replicas[0].ticks

        async def goes_on() -> bool:
            return leader.engine.replicas[0].ticks > ticks + 3

        await until(goes_on)
        assert leader.engine.leaderships.lost[Loss.HANDED_OVER] == handed_over + 1
        assert not any(write.done() for write in writes), "a write was answered that no majority has"
    finally:
        disks.let_go()
    await asyncio.gather(*writes, leaving)
    await cluster.leader(0)
    await until(cluster.is_quiet)
    for node in cluster.alive:
        assert sorted(texts_of(await history(node.service, "c"))) == sorted(["before", *texts])
    await cluster.stop()


def test_p4_writes_under_way_are_answered_when_their_leader_hands_over(tmp_path: Path) -> None:
    """Whoever leads next has them and commits them, so that no writer sees that anything happened."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        await write_and_hand_over(cluster, lambda leader: transfer(cluster, 0, cluster.nodes[cluster.nodes.index(leader) - 1]))

    run(check())


def test_p4_writes_under_way_are_answered_when_their_node_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow this machine is just now.
    monkeypatch.setattr(moving, "HAND_OVER_S", 60.0)

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        await write_and_hand_over(cluster, lambda leader: leader.stop())

    run(check())


def lose_transfers(node: NodeLife, count: int) -> None:
    """Of what this node hands over, so many are never heard of."""
    losses = iter(range(count))
    hand_over = node.engine.hand_over
    node.engine.hand_over = lambda replica, to: next(losses, None) is None and hand_over(replica, to)


@pytest.mark.parametrize("way", ["stops", "is asked"])
def test_p4_what_nobody_took_over_is_handed_over_again(tmp_path: Path, way: str) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        leader = await cluster.leader(0)
        led, leaderships = leader.engine.replicas[0], leader.engine.leaderships
        await transfer(cluster, SYSTEM_SHARD, cluster.nodes[cluster.nodes.index(leader) - 1])
        before = leaderships.lost[Loss.HANDED_OVER]
        lose_transfers(leader, 3)
        if way == "stops":
            await leader.stop()
        else:
            await transfer(cluster, 0, cluster.nodes[cluster.nodes.index(leader) - 1])
            assert not led.group.is_leader
        assert leaderships.lost[Loss.HANDED_OVER] == before + 1
        await cluster.stop()

    run(check())


def test_a_node_that_stops_says_what_it_handed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "HAND_OVER_S", 60.0)

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        leader = await cluster.leader(0)
        caplog.clear()
        # Whatever it hands over, no step of time comes behind it.
        next(task for task in leader.node._tasks if task.get_name() == "ticks").cancel()
        await leader.stop()
        await cluster.stop()

    with caplog.at_level(logging.INFO, "contextstore.cluster"):
        run(check())
    assert lines(caplog, r"handed over the leadership of shards? 0\b")


def test_p4_a_replica_that_finds_itself_alone_and_does_not_lead_has_time(tmp_path: Path) -> None:
    """The others were removed while it stood still: whoever waits is answered, and it stands for election."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        leader = await cluster.leader(0)
        engine = next(node for node in cluster.nodes if node is not leader).engine
        alone = engine.replicas[0]
        alone.has_peers = False
        before = alone.ticks

        async def has_time() -> bool:
            engine.wake([0])
            return alone.ticks > before + 3

        await until(has_time)
        alone.has_peers = True
        await cluster.stop()

    run(check())


def test_p4_a_write_that_waits_is_answered_also_by_a_leader_that_is_alone(tmp_path: Path) -> None:
    """It was proposed in an earlier term of this leader, at a place that its log does not have any more."""

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(1)
        alone = cluster.nodes[0].engine.replicas[0]
        command: Any = None
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        alone._proposals.add(alone.group.last_index + 7, Proposal(1, command, 1, reply))
        alone._proposals.outlive(alone.ticks)
        with pytest.raises(OutcomeUnknown):
            await reply
        await cluster.stop()

    run(check())


def count_transfers(node: NodeLife) -> list[int]:
    """By the member that was asked, those that this node begins from now on."""
    begun: list[int] = []
    hand_over = node.engine.hand_over

    def counting(replica: Replica, to: int) -> bool:
        is_begun = hand_over(replica, to)
        begun.extend([to] * is_begun)
        return is_begun

    node.engine.hand_over = counting  # type: ignore[method-assign]
    return begun


def hear_no_transfer(node: NodeLife) -> None:
    """This node is not told any more that it should lead."""
    receive = node.engine.receive

    def deaf(sender: int, messages: Iterable[tuple[int, bytes]]) -> None:
        receive(sender, [each for each in messages if peek_message(each[1])[0] != MessageKind.TIMEOUT_NOW])

    node.engine.receive = deaf  # type: ignore[method-assign]


@pytest.mark.parametrize(("trouble", "asks"), [("dead", 1), ("deaf", moving.TRANSFER_ASKS)])
def test_p4_a_shard_takes_writes_while_its_leadership_is_offered_to_a_node_that_does_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, asks: int
) -> None:
    """Raft takes no writes while a transfer is under way: one that leads to nothing must not be begun again and again."""
    if trouble == "dead":
        monkeypatch.setattr(moving, "CHANGE_TIMEOUT_S", 3.0)

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        for node in cluster.nodes:
            node.engine.disk._limit_s = 0.0
        leader = await cluster.leader(0)
        other = cluster.nodes[cluster.nodes.index(leader) - 1]
        await appended(leader, "before")
        assert leader.node.moves is not None and other.node.cluster is not None
        number, begun = other.node.cluster.number, count_transfers(leader)
        if trouble == "dead":
            await other.kill()
        else:
            hear_no_transfer(other)
        offering = asyncio.create_task(leader.node.moves.transfer_leader(0, number))
        written = 0
        while not offering.done():
            await appended(leader, f"text {written}")
            written += 1
        with pytest.raises(Unavailable, match="not taken over"):
            await offering
        assert written
        assert len(begun) <= asks if trouble == "dead" else len(begun) == asks
        await cluster.stop()

    run(check())


def test_a_transfer_from_a_leader_that_stops_meanwhile_is_no_success(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        leader = await cluster.leader(0)
        other = cluster.nodes[cluster.nodes.index(leader) - 1]
        assert leader.node.moves is not None and other.node.cluster is not None
        hear_no_transfer(other)
        begun = count_transfers(leader)
        offering = asyncio.create_task(leader.node.moves.transfer_leader(0, other.node.cluster.number))

        async def is_offered() -> bool:
            return bool(begun)

        await until(is_offered)
        leader.engine.replicas[0].fail("It stopped.")
        with pytest.raises(NotHere):
            await offering
        await cluster.stop()

    run(check())


def test_a_transfer_ends_also_where_time_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does on a node whose disk is full; nobody gives the transfer up then."""
    monkeypatch.setattr(moving, "CHANGE_TIMEOUT_S", 1.0)

    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        leader = await cluster.leader(0)
        other = cluster.nodes[cluster.nodes.index(leader) - 1]
        assert leader.node.moves is not None and other.node.cluster is not None
        for node in cluster.nodes:
            next(task for task in node.node._tasks if task.get_name() == "ticks").cancel()
        hear_no_transfer(other)
        with pytest.raises(Unavailable, match="not taken over"):
            await leader.node.moves.transfer_leader(0, other.node.cluster.number)
        assert leader.engine.replicas[0].group.status().transferee
        for node in cluster.nodes:
            await node.kill()

    run(check())


class Led:
    """What `Leaderships` asks of a replica of member 1, which votes beside 2 and 3."""

    shard, ticks, election_ticks = 7, 0, 10

    def __init__(self) -> None:
        self.members = SimpleNamespace(voters=(1, 2, 3))
        self.group = SimpleNamespace(term=5, status=lambda: SimpleNamespace(term=self.term, vote=self.vote, replica_id=1))
        self.term, self.vote = 5, 1


@pytest.mark.parametrize(
    ("term", "vote", "leader", "ticks", "voters", "why"),
    [
        (6, 2, 0, 5, (1, 2, 3), Loss.HANDED_OVER),
        (6, 0, 2, 5, (1, 2, 3), Loss.HANDED_OVER),
        (6, 3, 3, 5, (1, 2, 3), Loss.REPLACED),
        (6, 0, 0, 5, (1, 2, 3), Loss.REPLACED),
        (6, 2, 2, 500, (1, 2, 3), Loss.REPLACED),
        (5, 1, 0, 5, (1, 2, 3), Loss.UNHEARD),
        (5, 1, 0, 5, (2, 3), Loss.REMOVED),
    ],
    ids=["the one asked stands", "it leads already", "another", "nobody yet", "it was asked long ago", "nobody is heard", "votes no more"],
)
def test_why_a_leadership_was_lost(term: int, vote: int, leader: int, ticks: int, voters: tuple[int, ...], why: Loss) -> None:
    led, leaderships = Led(), Leaderships()
    replica: Any = led
    leaderships.note(replica, 1, Role.LEADER)
    leaderships.hands_over(replica, 2)
    led.term, led.vote, led.ticks, led.members.voters = term, vote, ticks, voters
    leaderships.note(replica, leader, Role.FOLLOWER)
    # Only once, whatever else is heard of the group.
    leaderships.note(replica, 3, Role.FOLLOWER)
    assert {loss: count for loss, count in leaderships.lost.items() if count} == {why: 1}
    assert leaderships.gained == 1


def test_a_line_names_some_shards_and_counts_many(caplog: pytest.LogCaptureFixture) -> None:
    leaderships = Leaderships()
    with caplog.at_level(logging.INFO, "contextstore.cluster"):
        for shards in ([4], [9, 4], [SYSTEM_SHARD, 2, 1], range(20)):
            for shard in shards:
                led: Any = Led()
                led.shard = shard
                leaderships.note(led, 1, Role.LEADER)
                leaderships.note(led, 0, Role.FOLLOWER)
            leaderships.tell(logging.getLogger("contextstore.cluster"))
            leaderships.tell(logging.getLogger("contextstore.cluster"))
    assert [record.getMessage().split(":")[0].removeprefix("gave up the leadership of ") for record in caplog.records] == [
        "shard 4",
        "shards 4 and 9",
        "shards 1, 2 and system",
        "20 shards, among them 0, 1, 2, 3, 4, 5, 6, 7",
    ]


def test_p4_a_leader_that_is_cut_off_says_so_and_leaves_no_writer_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        leader = await cluster.leader(0)
        writers = Writers(leader, "c")
        await writers.until_more(30)
        for node in cluster.nodes:
            if node is not leader:
                await node.kill()

        async def is_refused() -> bool:
            return any(refusal.code == "outcome_unknown" for refusal in writers.refusals)

        await until(is_refused)
        await writers.end()
        assert leader.engine.replicas[0].in_flight == 0
        assert leader.engine.leaderships.lost[Loss.UNHEARD] >= 1
        await leader.kill()

    with caplog.at_level(logging.INFO, "contextstore.cluster"):
        run(check())
    assert lines(caplog, r"gave up the leadership of shards? 0\b.*: no majority of its members was heard for an election timeout")


def test_a_node_that_stood_still_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pauses = Pauses(1.0)
    with caplog.at_level(logging.WARNING, "contextstore.cluster"):
        for late_s in (0.0, 0.5, 0.51, 3.0, 1.0):
            pauses.note(late_s)
    assert pauses.count == 3
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "this node stood still for 0.5 s",
        "this node stood still for 3.0 s",
        "this node stood still for 1.0 s",
    ]
