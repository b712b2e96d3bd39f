"""The feature level of a cluster: begun by its first node, raised only when every member understands it, and never lowered."""

import pytest

from context_node.contexts.cluster import ClusterState, MarkNode, RaiseLevel, RegisterNode, RegisterNode1
from context_node.contexts.commands import Compare, Purge, Rules
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.revisions import NEWEST, SINCE, revision_of


def registered(*revisions: int) -> ClusterState:
    state = ClusterState()
    for place, revision in enumerate(revisions):
        state.apply(RegisterNode(1, f"store {place}", f"n{place}", "p:1", "", "", revision))
    return state


def test_the_first_node_decides_where_a_cluster_begins() -> None:
    assert registered(3).level == 3
    state = ClusterState()
    state.apply(RegisterNode1(1, "s", "n", "p:1", "", ""))
    assert (state.level, state.members[0].revision) == (1, 1)


def test_a_newcomer_that_understands_less_is_refused_and_one_that_understands_more_changes_nothing() -> None:
    state = registered(2)
    with pytest.raises(Unprocessable, match="feature level 2, and node old understands 1") as refused:
        state.apply(RegisterNode(1, "old", "old", "p:1", "", "", 1))
    assert refused.value.details == {"level": 2}
    with pytest.raises(Unprocessable):
        state.apply(RegisterNode1(1, "older", "older", "p:1", "", ""))
    assert len(state.nodes) == 1
    state.apply(RegisterNode(1, "new", "new", "p:1", "", "", 3))
    assert state.level == 2


def test_the_level_is_raised_once_every_member_understands_it() -> None:
    state = registered(1, 1, 2)
    with pytest.raises(Unprocessable, match="n1") as refused:
        state.apply(RaiseLevel(1, 0, 2))
    assert refused.value.details == {"nodes": ["n0", "n1"]}
    for place in (0, 1):
        state.apply(RegisterNode(1, f"store {place}", f"n{place}", "p:1", "", "", 2))
    for _ in range(2):
        state.apply(RaiseLevel(1, 0, 2))
        assert state.level == 2
    with pytest.raises(Unprocessable, match="never goes back"):
        state.apply(RaiseLevel(1, 0, 1))


def test_until_it_is_raised_a_node_can_go_back_and_is_waited_for_again() -> None:
    state = registered(1, 2)
    state.apply(RegisterNode(1, "store 0", "n0", "p:1", "", "", 2))
    state.apply(RegisterNode(1, "store 1", "n1", "p:1", "", "", 1))
    with pytest.raises(Unprocessable, match="n1"):
        state.apply(RaiseLevel(1, 0, 2))


def test_a_removed_node_is_not_waited_for() -> None:
    state = registered(1, 2)
    state.apply(MarkNode(1, 0, 2, removed=True))
    with pytest.raises(Unprocessable):
        state.apply(RaiseLevel(1, 0, 2))
    state = registered(1, 2, 2)
    state.apply(RegisterNode(1, "store 0", "n0", "p:1", "", "", 1))
    state.apply(MarkNode(1, 0, 1, removed=True))
    state.apply(RaiseLevel(1, 0, 2))
    assert state.level == 2


def test_an_older_administrator_raises_nothing() -> None:
    state = registered(1)
    state.apply(RegisterNode(1, "store 0", "n0", "p:1", "", "", 2))
    state.apply(MarkNode(1, 7, 1, cordoned=True))
    with pytest.raises(Unprocessable, match="newer administrator"):
        state.apply(RaiseLevel(1, 6, 2))


def test_level_and_revisions_are_stored() -> None:
    state = registered(2, 3)
    again = ClusterState.decode(state.encode())
    assert (again.level, [node.revision for node in again.members]) == (2, [2, 3])


def test_every_command_has_a_revision_that_this_version_understands() -> None:
    assert {revision_of(Compare(1, "m")), revision_of(Purge("c", 1, Rules()))} == {1}
    assert all(1 < revision <= NEWEST for revision in SINCE.values())
