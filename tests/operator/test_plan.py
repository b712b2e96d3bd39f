"""The operator's plan: from any state repeated safe steps reach the goal, and none of them takes a shard below its majority.

A cluster is simulated by the effects of steps on pods, members and shards; the real `placement.py` moves replicas in it.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from context_operator import plan, steps
from context_operator.plan import Desired
from support.operated_cluster import SYSTEM, World

NEW, OLD = "new", "old"


def drive(world: World, desired: Desired, moves_max: int = 2, turns: int = 400) -> list[steps.Decision]:
    """Take steps until nothing is to be done."""
    made: list[steps.Decision] = []
    for _ in range(turns):
        world.settle(desired.restart_hash)
        observed = world.observed()
        decision = plan.plan(desired, observed)
        assert decision == plan.plan(desired, observed), "the same input gives the same decision"
        made.append(decision)
        before = {shard: (leader, dict(replicas)) for shard, (leader, replicas) in world.shards.items()}
        world.take(decision.step, moves_max, desired.restart_hash)
        if isinstance(decision.step, steps.GiveUpVolume):
            desired = replace(desired, replace=None)
        is_idle = isinstance(decision.step, steps.Move) and decision.step.balances and before == world.shards
        if is_idle and not decision.operation:
            return made
    raise AssertionError(f"not at rest after {turns} turns: {made[-5:]}")


def wanted(replicas: int, **changes: object) -> Desired:
    factor = min(3, replicas) - 1 + min(3, replicas) % 2
    return replace(Desired(replicas, factor, NEW), **changes)  # type: ignore[arg-type]


def check_goal(world: World, desired: Desired) -> None:
    members = {n: o for n, o in world.numbers.items() if n not in world.removed}
    assert world.size == desired.replicas
    assert sorted(members.values()) == list(range(desired.replicas))
    assert not world.draining - world.removed
    assert set(world.pods.values()) <= {desired.restart_hash}
    for number, (leader, replicas) in world.shards.items():
        assert leader in members
        if number != SYSTEM:
            assert sorted(replicas.values()) == [True] * desired.factor


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([NEW, OLD]), st.booleans()), min_size=1, max_size=5), st.integers(1, 4))
def test_any_sequence_of_wishes_is_reached_by_safe_steps(wishes: list[tuple[int, str, bool]], moves_max: int) -> None:
    """Scale to any size, change what pods are started with, give a volume up: each wish ends as it should, majorities kept."""
    world = World()
    for replicas, restart_hash, gives_up in wishes:
        desired = wanted(replicas, restart_hash=restart_hash)
        drive(world, desired, moves_max)
        check_goal(world, desired)
        if gives_up and desired.factor == 3:
            drive(world, replace(desired, replace=replicas - 1), moves_max)
            check_goal(world, desired)


def ready_world(replicas: int = 3) -> World:
    world = World()
    drive(world, wanted(replicas))
    return world


def test_a_cluster_begins_once_even_if_nobody_remembers_that_it_did() -> None:
    world = ready_world()
    world.begun = False
    decision = plan.plan(wanted(3), world.observed())
    assert isinstance(decision.step, steps.NoteBegun)


def test_nothing_begins_while_a_pod_has_not_said_that_it_waits() -> None:
    world = World(size=3)
    world.settle(NEW)
    observed = world.observed()
    silent = replace(observed, pods=(replace(observed.pods[0], state=""), *observed.pods[1:]))
    decision = plan.plan(wanted(3), silent)
    assert isinstance(decision.step, steps.Wait)
    assert "pod 0" in decision.sentence
    assert isinstance(plan.plan(wanted(3), observed).step, steps.Begin)


def test_volumes_of_another_cluster_are_never_begun_anew() -> None:
    world = World(size=3)
    world.settle(NEW)
    observed = world.observed()
    foreign = replace(observed, pods=(*observed.pods[:2], replace(observed.pods[2], cluster_id="b" * 32, state="member")))
    decision = plan.plan(wanted(3), foreign)
    assert decision.refusal is not None
    assert decision.refusal[0] == "ForeignVolumes"


def test_empty_volumes_of_a_cluster_that_had_begun_are_no_reason_to_begin_again() -> None:
    world = ready_world()
    world.stores.clear()
    observed = replace(world.observed(), view=None)
    decision = plan.plan(wanted(3), observed)
    assert isinstance(decision.step, steps.Wait)
    assert decision.refusal is not None
    assert decision.refusal[0] == "DataMissing"


@pytest.mark.parametrize("replicas", [1, 2])
def test_scaling_down_waits_while_a_shard_lacks_a_replica(replicas: int) -> None:
    world = ready_world(5)
    del world.pods[0]
    decision = plan.plan(wanted(3), world.observed())
    assert isinstance(decision.step, steps.Wait)
    assert decision.refusal is not None
    assert decision.refusal[0] == "UnderReplicated"


def test_scaling_down_waits_for_ever_where_nothing_may_be_moved() -> None:
    decision = plan.plan(wanted(3, mode="Disabled"), ready_world(5).observed())
    assert decision.refusal is not None
    assert decision.refusal[0] == "RebalanceDisabled"


def test_no_pod_is_restarted_while_another_is_away_and_leaders_leave_first() -> None:
    world = ready_world()
    desired = wanted(3, restart_hash=OLD)
    first = plan.plan(desired, world.observed())
    assert isinstance(first.step, steps.HandOver | steps.DeletePod)
    observed = world.observed()
    away = replace(observed, pods=(replace(observed.pods[0], is_ready=False), *observed.pods[1:]))
    assert isinstance(plan.plan(desired, away).step, steps.Wait)
    deleted = [decision.step for decision in drive(world, desired) if isinstance(decision.step, steps.DeletePod)]
    assert sorted(step.ordinal for step in deleted) == [0, 1, 2]


def test_a_pod_that_does_not_run_is_made_anew_whatever_else_is_wrong() -> None:
    """A bad image can be taken back although nothing is ready."""
    world = ready_world()
    observed = world.observed()
    broken = tuple(replace(pod, is_ready=False, trouble="ImagePullBackOff") for pod in observed.pods)
    decision = plan.plan(wanted(3, restart_hash=OLD), replace(observed, pods=broken, view=None))
    assert isinstance(decision.step, steps.DeletePod)
    assert isinstance(plan.plan(wanted(3), replace(observed, pods=broken, view=None)).step, steps.Wait)


def test_a_volume_is_not_given_up_while_its_shards_need_it() -> None:
    world = ready_world()
    del world.pods[1]
    decision = plan.plan(wanted(3, replace=0), world.observed())
    assert decision.refusal is not None
    assert decision.refusal[0] == "UnderReplicated"
    assert plan.plan(wanted(3, replace=7), world.observed()).refusal is not None


def test_a_paused_cluster_is_left_alone() -> None:
    decision = plan.plan(wanted(5, paused=True), ready_world().observed())
    assert isinstance(decision.step, steps.Wait)


def test_evictions_are_allowed_only_while_every_shard_is_complete() -> None:
    world = ready_world()
    assert plan.may_lose(world.observed()) == 1
    del world.pods[2]
    assert plan.may_lose(world.observed()) == 0
