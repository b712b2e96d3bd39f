"""A group that ends by a defect ends alone: its node goes on with all others, tells of it, and asks whoever leads it next."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from context_node.contexts.refusals import Unavailable
from context_node.contexts.requests import PutPolicy
from context_node.raft import MessageKind
from context_node.runtime.metrics import NodeMetrics
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, node_of, shard_of
from support.clusters import TestCluster, until
from support.raft_messages import message as raft_message
from support.running_nodes import NodeLife, append, history, run, texts_of

SHARDS = 4


def nonsense(replica: Replica) -> tuple[int, bytes]:
    """A message from another member, or on a node alone from one that never was: entries are committed which this replica does not have."""
    own = replica.group.replica_id
    sender = next((voter for voter in replica.members.voters if voter != own), own + 1)
    return sender, raft_message(MessageKind.HEARTBEAT, to=own, sender=sender, term=99, commit=10_000)


def end_by_a_message(node: NodeLife, replica: Replica) -> None:
    sender, message = nonsense(replica)
    node.engine.receive(node_of(sender), [(replica.shard, message)])
    assert replica.group.poisoned and replica.failure is not None


class Panicking:
    """A group that has a defect which shows as soon as it is called like this."""

    def __init__(self, replica: Replica, call: str) -> None:
        self._group, self._call, self._message = replica.group, call, nonsense(replica)[1]

    def __getattr__(self, name: str) -> Any:
        return (lambda *_arguments: self._group.step(self._message)) if name == self._call else getattr(self._group, name)


def plant(replica: Replica, call: str) -> None:
    group: Any = Panicking(replica, call)
    replica.group = group


def id_in(shard: int) -> str:
    """A context of this shard."""
    return next(f"c{number}" for number in range(1000) if shard_of(f"c{number}", SHARDS) == shard)


def working(node: NodeLife) -> dict[int, Replica]:
    return {shard: replica for shard, replica in node.engine.replicas.items() if replica.failure is None}


async def goes_on(nodes: Sequence[NodeLife], *, ticks: int = 50) -> None:
    """Time passes, in which groups are looked at that could rest, and so do the looks of upkeep."""
    watches = [node.node.cluster._watch for node in nodes if node.node.cluster is not None]
    due = [watch._ticks + ticks for watch in watches]

    async def has_passed() -> bool:
        return all(watch._ticks > at for watch, at in zip(watches, due, strict=True))

    await until(has_passed)
    for node in nodes:
        await node.upkeep.round()
        assert not node.fatal


async def serves(node: NodeLife, shards: Iterable[int], text: str) -> None:
    """Whoever leads them, through this node contexts of these shards are written and read."""
    for shard in shards:

        async def is_served() -> bool:
            await append(node.service, id_in(shard), text)  # noqa: B023
            return texts_of(await history(node.service, id_in(shard)))[-1] == text  # noqa: B023

        await until(is_served)


async def tells_of_it(node: NodeLife, hurt: int) -> None:
    samples = {sample.name: sample.value for metric in NodeMetrics(node.node).collect() for sample in metric.samples}
    assert samples["contextstore_shards_stopped"] == 1
    assert node.node.cluster is not None
    told = {one.shard: one for one in node.node.cluster.describe().replicas}
    assert "internal fault" in str(told[hurt].failure) and not told[hurt].is_leader
    assert all(one.failure is None and one.last_index > 0 for shard, one in told.items() if shard != hurt)


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("shard", [0, SYSTEM_SHARD], ids=["shard 0", "system"])
def test_a_group_that_ends_by_a_defect_harms_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture, shard: int, role: str) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(3)
        await append(cluster.nodes[0].service, id_in(0), "before")
        leader = await cluster.leader(shard)
        hurt = leader if role == "leader" else cluster.nodes[cluster.nodes.index(leader) - 1]
        end_by_a_message(hurt, hurt.engine.replicas[shard])
        await serves(hurt, range(SHARDS), "after")

        async def has_policy() -> bool:
            await hurt.service.put_policy("p", PutPolicy("last_n", {"limit": 5}))
            return True

        await until(has_policy)
        # A policy comes to every shard whose leader has a system group to look at.
        told = [node for node in cluster.nodes if SYSTEM_SHARD in working(node)]

        async def have_it() -> bool:
            led = [one for node in told for one in working(node).values() if one.leads and one.shard != SYSTEM_SHARD]
            return all("p" in one.machine.policies for one in led)

        await until(have_it)
        await goes_on(cluster.nodes)
        await tells_of_it(hurt, shard)

        async def is_led() -> bool:
            view = await cluster.look()
            return next(one for one in view.shards if one.shard == shard).leader is not None

        await until(is_led)
        await cluster.stop()

    run(check())
    assert sum("stopped" in record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR) == 1


def test_a_defect_that_shows_when_a_group_is_given_time_stops_its_replica_only(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(3)
        hurt = await cluster.leader(0)
        replica = hurt.engine.replicas[0]
        plant(replica, "tick")
        hurt.engine.wake([0])

        async def is_stopped() -> bool:
            return replica.failure is not None

        await until(is_stopped)
        await serves(hurt, range(SHARDS), "after")
        await goes_on(cluster.nodes)
        await tells_of_it(hurt, 0)
        await cluster.stop()

    run(check())


def test_a_group_that_ended_while_it_rested_does_not_hold_up_those_that_its_leader_led(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(3)
        leader = await cluster.leader(0)
        hurt = cluster.nodes[cluster.nodes.index(leader) - 1]
        end_by_a_message(hurt, hurt.engine.replicas[0])
        hurt.engine.replicas[0].is_resting = True
        # Its leader's node is not heard any more: the groups that it led are to have time again.
        other = next(one for shard, one in working(hurt).items() if shard != SYSTEM_SHARD)
        number = node_of(other.group.leader_id)
        other.is_resting = True
        hurt.engine.wake_led_by(number)
        assert not other.is_resting
        await cluster.stop()

    run(check())


@pytest.mark.parametrize("call", ["transfer_leader", "propose_conf_change", "report_snapshot", "compact", "clear_snapshot"])
def test_a_defect_that_shows_when_a_group_is_asked_for_something_stops_its_replica_only(tmp_path: Path, call: str) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=1).start(3)
        hurt = await cluster.leader(0)
        await append(hurt.service, id_in(0), "before")
        replica, moves = hurt.engine.replicas[0], hurt.node.moves
        assert moves is not None
        other = next(voter for voter in replica.members.voters if voter != replica.group.replica_id)
        plant(replica, call)

        async def forget() -> None:
            moves._forget_snapshot(0)

        works: dict[str, Callable[[], Awaitable[object]]] = {
            "transfer_leader": lambda: moves.transfer_leader(0, node_of(other)),
            "propose_conf_change": lambda: moves.change_members(0, (), (other,)),
            "report_snapshot": lambda: moves.snapshot_done(0, other, True),
            "compact": lambda: hurt.upkeep.checkpoint(replica),
            "clear_snapshot": forget,
        }
        with suppress(Unavailable):
            await works[call]()
        assert "internal fault" in str(replica.failure)
        await goes_on(cluster.nodes, ticks=5)
        await cluster.stop()

    run(check())


def test_a_group_of_a_node_alone_that_ends_by_a_defect_harms_no_other(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(1)
        node = cluster.nodes[0]
        for shard in range(SHARDS):
            await append(node.service, id_in(shard), "before")
        # Nothing gives it time: who writes meets it.
        plant(node.engine.replicas[0], "propose")
        for work in (append(node.service, id_in(0), "after"), append(node.service, id_in(0), "after"), history(node.service, id_in(0))):
            with pytest.raises(Unavailable, match="internal fault; see the node's log"):
                await work
        await serves(node, range(1, SHARDS), "after")
        await goes_on([node])
        await tells_of_it(node, 0)
        await cluster.stop()
        node = await cluster.nodes[0].start()
        assert texts_of(await history(node.service, id_in(0))) == ["before"]
        await cluster.stop()

    run(check())


def test_upkeep_goes_on_if_a_group_ends_while_it_waits_for_another(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(1)
        node = cluster.nodes[0]
        await serves(node, range(SHARDS), "before")
        upkeep, checkpoint = node.upkeep, node.upkeep.checkpoint
        others: list[Replica] = []

        async def hurting(replica: Replica, **how: bool) -> bool:
            if not others:
                others.extend(one for one in node.replicas if one is not replica and one.shard != SYSTEM_SHARD)
                for one in others:
                    end_by_a_message(node, one)
            return await checkpoint(replica, **how)

        upkeep.checkpoint = hurting  # type: ignore[method-assign]
        upkeep._limits = replace(upkeep._limits, log_bytes_max=1, log_bytes_per_shard_max=1)
        await upkeep._truncate_due()
        assert len(others) >= SHARDS - 1
        upkeep.checkpoint = checkpoint  # type: ignore[method-assign]
        await goes_on([node])
        await cluster.stop()

    run(check())
