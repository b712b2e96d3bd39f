"""A group that ends by a defect ends alone: its node goes on with all others, tells of it, and asks whoever leads it next."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from context_node.contexts.refusals import Unavailable
from context_node.raft import MessageKind
from context_node.runtime.metrics import NodeMetrics
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of, shard_of
from support.clusters import TestCluster, until
from support.raft_messages import message as raft_message
from support.running_nodes import NodeLife, append, history, run, texts_of

SHARDS = 4


def end_by_a_defect(node: NodeLife, replica: Replica, sender: int) -> None:
    """Tell a replica that entries are committed which it does not have."""
    numbers = {"to": replica.group.replica_id, "sender": sender, "term": 99, "commit": 10_000}
    node.engine.receive(node_of(sender), [(replica.shard, raft_message(MessageKind.HEARTBEAT, **numbers))])
    assert replica.group.poisoned and replica.failure is not None


def id_in(shard: int) -> str:
    """A context of this shard."""
    return next(f"c{number}" for number in range(1000) if shard_of(f"c{number}", SHARDS) == shard)


async def goes_on(nodes: Iterable[NodeLife], *, steps: int = 5) -> None:
    """Time passes, and so do the looks of upkeep."""
    for node in nodes:
        assert node.node.cluster is not None
        watch = node.node.cluster._watch
        due = watch._ticks + steps

        async def has_passed() -> bool:
            return watch._ticks > due  # noqa: B023

        await until(has_passed)
        await node.upkeep.round()
        assert not node.fatal


def tells_of_it(node: NodeLife) -> None:
    samples = {sample.name: sample.value for metric in NodeMetrics(node.node).collect() for sample in metric.samples}
    assert samples["contextstore_shards_stopped"] == 1
    assert node.node.cluster is not None
    told = {one.shard: one for one in node.node.cluster.describe().replicas}
    assert "internal fault" in str(told[0].failure) and not told[0].is_leader
    assert told[1].failure is None and told[1].last_index > 0


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_group_that_ends_by_a_defect_harms_no_other(tmp_path: Path, role: str) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(3)
        await append(cluster.nodes[0].service, id_in(0), "before")
        leader = await cluster.leader(0)
        hurt = leader if role == "leader" else cluster.nodes[cluster.nodes.index(leader) - 1]
        replica = hurt.engine.replicas[0]
        sender = next(voter for voter in replica.members.voters if voter != replica.group.replica_id)
        end_by_a_defect(hurt, replica, sender)
        # Through the node whose replica stopped: of this shard others answer, of all others it does.
        for shard in range(SHARDS):

            async def is_written() -> bool:
                await append(hurt.service, id_in(shard), "after")  # noqa: B023
                return True

            await until(is_written)
            assert texts_of(await history(hurt.service, id_in(shard)))[-1] == "after"
        await goes_on(cluster.nodes)
        tells_of_it(hurt)
        view = await cluster.look()
        assert view.shards[0].leader is not None
        await cluster.stop()

    run(check())


def test_a_group_of_a_node_alone_that_ends_by_a_defect_harms_no_other(tmp_path: Path) -> None:
    async def check() -> None:
        cluster = await TestCluster(tmp_path, shards=SHARDS).start(1)
        node = cluster.nodes[0]
        for shard in range(SHARDS):
            await append(node.service, id_in(shard), "before")
        replica = node.engine.replicas[0]
        end_by_a_defect(node, replica, replica.group.replica_id + 1)
        with pytest.raises(Unavailable, match="internal fault; see the node's log"):
            await append(node.service, id_in(0), "after")
        with pytest.raises(Unavailable, match="internal fault"):
            await history(node.service, id_in(0))
        for shard in range(1, SHARDS):
            await append(node.service, id_in(shard), "after")
        await goes_on([node])
        tells_of_it(node)
        await cluster.stop()
        node = await cluster.nodes[0].start()
        assert texts_of(await history(node.service, id_in(0))) == ["before"]
        await cluster.stop()

    run(check())
