"""What the nodes show and what their administrators read are the same, although neither imports the other."""

import msgspec
import pytest

from context_node.runtime import admin
from context_operator import view
from context_operator.view import view_of


@pytest.mark.parametrize("name", ["ReplicaView", "ShardView", "NodeView", "ClusterView", "SelfView", "NodePolicies"])
def test_both_sides_know_the_same_fields(name: str) -> None:
    ours, theirs = getattr(admin, name), getattr(view, name)
    assert [field.name for field in msgspec.structs.fields(ours)] == [field.name for field in msgspec.structs.fields(theirs)]


def test_what_a_node_shows_can_be_read_as_json_and_as_it_is() -> None:
    replica = admin.ReplicaView(1 << 40, 1, True, True, 7)
    shard = admin.ShardView(0, False, 1, 2, 7, False, 0, [replica])
    node = admin.NodeView(1, "n1", "a", "h:4001", "h:4000", True, True, "1", 1, False, False, False, 1, 1)
    shown = admin.ClusterView("c", 1, 0, 1, 3, 1, 1, 0, 0, [node], [shard])
    assert view_of(shown) == view_of(msgspec.json.decode(msgspec.json.encode(shown)))
    assert view_of(shown).name_of(1) == "n1"
