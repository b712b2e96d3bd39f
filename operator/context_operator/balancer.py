"""The planner at work: look at the cluster, plan, take the steps, look again.

Runs inside a node (on the one that leads the system group) or inside `contextstore cluster rebalance`; both give it the same few calls.
Level-based: it keeps nothing between two looks, so it may stop at any moment and another may go on. A step that is refused is planned
again from what the next look shows.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from context_operator.placement import AddLearner, Plan, Promote, Remove, Step, TransferLeader, plan
from context_operator.view import ClusterView, ShardView, cluster_info, view_of

logger = logging.getLogger("contextstore.balancer")

BUSY_EVERY_S = 0.1
"""After steps were taken: others may be possible now."""

LOOK_EVERY_S = 0.5
IDLE_EVERY_S = 30.0
"""Where the last look showed nothing to do, unless something is heard to change. A look asks every node for all its replicas."""

MOVES_MAX = 4


class Admin(Protocol):
    """What a node gives its administrators."""

    async def look(self) -> object: ...
    async def add_learner(self, shard: int, node: int) -> None: ...
    async def change_members(self, shard: int, promote: tuple[int, ...], remove: tuple[int, ...]) -> None: ...
    async def transfer_leader(self, shard: int, node: int) -> None: ...


class ResidentAdmin(Admin, Protocol):
    """What it gives to one that lives on the node. Of all of them only the one where `leads` acts."""

    @property
    def leads(self) -> bool: ...
    async def changed(self, timeout_s: float) -> None: ...


async def run(admin: ResidentAdmin, moves_max: int = MOVES_MAX) -> None:
    """Keep the cluster as it should be, whenever this node leads the system group. Until cancelled."""
    complaints: tuple[str, ...] = ()
    pause_s = LOOK_EVERY_S
    while True:
        if pause_s > LOOK_EVERY_S:
            await admin.changed(pause_s - LOOK_EVERY_S)
            pause_s = LOOK_EVERY_S
        # What changes seldom changes alone: the others that change with it are waited for.
        await asyncio.sleep(pause_s)
        pause_s = LOOK_EVERY_S
        if not admin.leads:
            continue
        _, made = await turn(admin, moves_max)
        if made is not None and made.blocked != complaints:
            complaints = made.blocked
            for sentence in complaints:
                logger.warning("%s", sentence)
        if made is not None and made.steps:
            pause_s = BUSY_EVERY_S
        elif made is not None and not made.moves_left:
            pause_s = IDLE_EVERY_S


async def turn(
    admin: Admin, moves_max: int, tell: Callable[[str], None] | None = None, *, only_needed: bool = False
) -> tuple[ClusterView | None, Plan | None]:
    """One look and its steps. What a node refuses is logged, and planned again at the next look. `only_needed`: shards that have all their
    replicas, none of them on a node that is drained, stay as they are."""
    try:
        view = view_of(await admin.look())
    except Exception as error:  # whatever keeps a node from being looked at, the next turn tries again
        logger.warning("the cluster cannot be looked at: %s", error)
        return None, None
    made = plan(cluster_info(view), moves_max)
    if only_needed:
        moving = _needing(view)
        made = replace(made, steps=tuple(step for step in made.steps if step.shard in moving))
    # A learner that its own node does not know can never catch up, and the shard's moves would wait for it for ever.
    lost = [Remove(shard.shard, one.replica_id) for shard in view.shards for one in shard.replicas if one.is_missing and not one.is_voter]

    async def attempt(step: Step) -> None:
        if tell is not None:
            tell(sentence_of(step, view))
        try:
            await take(admin, step)
        except Exception as error:  # a refusal, or a node that went away meanwhile
            logger.info("not done: %s: %s", sentence_of(step, view), error)

    # Each is of another shard, so that none waits for another's snapshot.
    await asyncio.gather(*(attempt(step) for step in (*lost, *made.steps)))
    return view, made


def _needing(view: ClusterView) -> set[int]:
    """The shards that cannot stay as they are, and the system group, which every node follows."""
    usable = {node.number for node in view.nodes if not node.draining}
    alive = sum(node.is_alive for node in view.nodes if node.number in usable)
    wanted = min(view.replication_factor, alive - 1 + alive % 2)

    def is_needing(shard: ShardView) -> bool:
        voters = sum(one.is_voter for one in shard.replicas)
        is_whole = wanted <= voters <= view.replication_factor and voters == len(shard.replicas)
        return shard.is_system or shard.is_joint or not is_whole or any(one.node not in usable for one in shard.replicas)

    return {shard.shard for shard in view.shards if is_needing(shard)}


async def take(admin: Admin, step: Step) -> None:
    """Carry out one step."""
    match step:
        case AddLearner():
            await admin.add_learner(step.shard, step.node)
        case Promote():
            await admin.change_members(step.shard, step.replica_ids, step.removes)
        case Remove():
            await admin.change_members(step.shard, (), (step.replica_id,))
        case TransferLeader():
            await admin.transfer_leader(step.shard, step.to_node)


def sentence_of(step: Step, view: ClusterView) -> str:
    """A step for people."""
    nodes = {one.replica_id: view.name_of(one.node) for shard in view.shards for one in shard.replicas}
    match step:
        case AddLearner():
            return f"shard {step.shard}: copy to {view.name_of(step.node)}"
        case Promote():
            joined = ", ".join(nodes.get(one, str(one)) for one in step.replica_ids)
            left = ", ".join(nodes.get(one, str(one)) for one in step.removes)
            parts = [f"{joined} votes" if joined else "", f"{left} leaves" if left else ""]
            return f"shard {step.shard}: {', '.join(part for part in parts if part)}"
        case Remove():
            return f"shard {step.shard}: {nodes.get(step.replica_id, step.replica_id)} leaves"
        case TransferLeader():
            return f"shard {step.shard}: {view.name_of(step.to_node)} leads"
