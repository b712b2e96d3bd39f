"""One run of the simulation: a seed gives a cluster, its clients, its faults and its end.

A run forms a cluster of three to five nodes, lets clients and faults loose for a number of events, then heals everything and asks that the
cluster comes back by itself: a leader for every shard, equal replicas, every acknowledged write in its place on every node. Prints nothing;
`simulate` gives what it saw, or raises `Violated` with the seed.
"""

import asyncio
import gc
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from context_node.raft import Role
from context_node.runtime.moving import BLANK_KEPT_S
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD, node_of
from simulation.administrator import FACTOR, Administrator
from simulation.archive_end import judge_archive
from simulation.clients import ANSWER_S, Clients
from simulation.faults import Faults
from simulation.judge import Judge, Violated
from simulation.loop import BEGIN_S, SimulatedLoop, run_simulated
from simulation.watching import watching
from simulation.world import ELECTION_TICKS, SHARDS, TICK_S, Life, World

EVENTS = 20_000
HEAL_S = 60 * ELECTION_TICKS * TICK_S
"""Within so much time after the last fault everything is whole again."""


@dataclass
class Seen:
    """What a run saw."""

    seed: int
    events: int = 0
    trace: int = 0
    operations: int = 0
    acknowledged: int = 0
    marks: Counter[str] = field(default_factory=Counter)
    violation: Violated | None = None
    simulated_s: float = 0.0


def simulate(seed: int, events: int = EVENTS, tell: Callable[[str], None] | None = None) -> Seen:
    """Run one seed. What a rule found is in `violation`; anything else that goes wrong is raised. `tell` hears the story."""
    gc.disable()
    heard, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        return _simulate(seed, events, tell)
    finally:
        # What is left of dead processes ends here, where nobody listens.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        sys.unraisablehook = heard
        gc.enable()


def _simulate(seed: int, events: int, tell: Callable[[str], None] | None) -> Seen:
    loop = SimulatedLoop(seed)
    judge = Judge(loop)
    judge.tell = tell
    seen = Seen(seed)
    world = World(loop, judge)
    if seed % 3:
        # By a generator of its own: what the other seeds do does not depend on it.
        world.give_archive(random.Random(seed))
    try:
        with watching(judge):
            clients = run_simulated(loop, _run(world, judge, events))
        seen.operations, seen.acknowledged = clients.asked, clients.acknowledged
    except Violated as violation:
        violation.add_note(f"seed {seed}")
        seen.violation = Violated(violation.rule, violation.sentence)
    except BaseException as error:
        error.add_note(f"seed {seed}, event {loop.events}")
        raise
    finally:
        with warnings.catch_warnings():
            # Coroutines that a dead process was to run.
            warnings.simplefilter("ignore")
            world.close()
    seen.events, seen.trace, seen.marks, seen.simulated_s = loop.events, loop.trace, judge.marks, loop.time() - BEGIN_S
    return seen


def _unraisable(what: "sys.UnraisableHookArgs") -> None:
    """What connections and coroutines of dead processes say when they are let go is of no interest; anything else is told as ever."""
    if not any(each in str(what.exc_value) for each in ("no power", "event loop", "ignored GeneratorExit")):
        sys.__unraisablehook__(what)


async def _run(world: World, judge: Judge, events: int) -> Clients:
    loop = world.loop
    await form(world, loop.random.choice((3, 3, 4, 5)))
    clients, faults = Clients(world, judge), Faults(world, judge)
    # Nobody gathers these while the run goes on: what they raise must be heard at once.
    playing = [
        loop.create_task(clients.run(), name="clients"),
        loop.create_task(faults.run(), name="faults"),
        loop.create_task(faults.mend(), name="mending"),
    ]
    for task in playing:
        task.add_done_callback(lambda task: _heard(loop, task))
    await loop.passed(events * 4 // 5)
    faults.heal()
    await playing[1]
    await world.until(lambda: _are_all_led(world), HEAL_S, "LIVENESS", lambda: picture(world))
    before = clients.acknowledged
    await world.until(lambda: clients.acknowledged > before + 20, HEAL_S, "LIVENESS", lambda: f"no writes: {picture(world)}")
    clients.is_over = True
    await playing[0]
    await world.until(lambda: is_whole(world, judge, faults), HEAL_S + BLANK_KEPT_S, "LIVENESS", lambda: picture(world))
    playing[2].cancel()
    clients.check_silence()
    await world.until(lambda: not clients.unanswered(), ANSWER_S, "P4", lambda: "; ".join(clients.unanswered()))
    await clients.judge_all()
    if world.archive is not None:
        await judge_archive(world, clients)
    await world.until(lambda: is_whole(world, judge, faults), HEAL_S, "LIVENESS", lambda: picture(world))
    _compare_replicas(world, judge)
    return clients


def _heard(loop: SimulatedLoop, task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        loop.call_exception_handler({"message": f"{task.get_name()} failed", "exception": error})


async def form(world: World, count: int) -> None:
    """Begin a cluster, and make the first nodes voters of every shard."""
    for place in range(count):
        life = Life(world, place)
        life.join = () if place == 0 else tuple(f"n{other}:1" for other in range(place))
        world.lives.append(life)
        life.start()
        await _ready(world, life)
    administrator = Administrator(world, world.judge)
    for _ in range(300):
        view = await administrator.look()
        if view is not None and all(sum(one.is_voter for one in shard.replicas) >= FACTOR for shard in view.shards):
            return
        await administrator.replace()
        await asyncio.sleep(0.02)
    world.judge.fail("LIVENESS", "the cluster was not formed")


async def _ready(world: World, life: Life) -> None:
    await world.until(lambda: life.is_ready, 30.0, "START", lambda: f"{life.name} is not ready")


def _are_all_led(world: World) -> bool:
    led = {replica.shard for life in world.lives for replica in life.replicas if replica.failure is None and replica.group.is_leader}
    return all(life.is_serving for life in world.lives) and len(led) == SHARDS + 1


def is_whole(world: World, judge: Judge, faults: Faults) -> bool:
    """Whether every shard has one leader, enough voters and no half-done change, and all its members have applied the same."""
    if faults.is_mending or not all(life.is_serving for life in world.lives):
        return False
    replicas = [replica for life in world.lives for replica in life.replicas]
    if any(replica.failure is not None or replica.is_installing for replica in replicas):
        return False
    by_id = {replica.group.replica_id: replica for replica in replicas}
    for shard in (*range(world.lives[0].options().shards), SYSTEM_SHARD):
        leaders = [replica for replica in replicas if replica.shard == shard and replica.group.is_leader]
        if len(leaders) != 1:
            return False
        leader = leaders[0]
        members = leader.members
        if members.joint or len(members.voters) < FACTOR or members.learners:
            return False
        if any(one not in by_id or by_id[one].applied_index != leader.group.last_index for one in members.members):
            return False
        if sum(replica.shard == shard for replica in replicas) != len(members.members):
            return False
    return True


def picture(world: World) -> str:
    return "\n".join(
        f"{life.name} {'serves' if life.is_serving else 'is away'}" + "".join(f"\n  {_of_replica(replica)}" for replica in life.replicas)
        for life in world.lives
    )


def _of_replica(replica: Replica) -> str:
    group, members = replica.group, replica.members
    if group.poisoned:
        return f"{replica.shard} panicked"
    text = f"{replica.shard} {_name(group.replica_id)} {Role(group.role).name} term {group.term} {replica.applied_index}/{group.commit}"
    text += f"/{group.last_index} voters {' '.join(map(_name, members.voters))}"
    text += f" learners {' '.join(map(_name, members.learners))}" if members.learners else ""
    text += f" outgoing {' '.join(map(_name, members.voters_outgoing))}" if members.voters_outgoing else ""
    text += " installing" if replica.is_installing else ""
    text += f" failed: {replica.failure}" if replica.failure else ""
    for one in group.status().progress:
        text += f"\n    {_name(one.replica_id)} {one.state} match {one.match_index} next {one.next_index} active {one.recent_active}"
        text += f" paused {one.paused} snapshot {one.pending_snapshot}"
    return text


def _name(replica_id: int) -> str:
    return f"{node_of(replica_id)}:{replica_id & 0xFFF:x}"


def _compare_replicas(world: World, judge: Judge) -> None:
    """I5, I14, W5: equal states, row for row, and logs in memory that equal those on the disks."""
    digests: dict[int, dict[tuple[int, bytes], str]] = {}
    for life in world.lives:
        for replica in life.replicas:
            replica.flush()
            digests.setdefault(replica.shard, {})[replica.store.digest()] = life.name
            disk = judge.disk(life.node.log)  # type: ignore[union-attr, arg-type]
            model = disk.shards[replica.shard]
            for index, (term, _) in model.entries.items():
                held = replica.group.term_at(index)
                judge.check(
                    held in (term, None), "I14", f"entry {index} of shard {replica.shard} on {life.name}: {held} in memory, {term} kept"
                )
            judge.check(
                model.last == replica.group.last_index, "I14", f"shard {replica.shard} on {life.name} keeps another log than it knows"
            )
    for shard, found in sorted(digests.items()):
        judge.check(len(found) == 1, "W5", f"the replicas of shard {shard} differ: {found}")
    if judge.violation is not None:
        raise judge.violation
