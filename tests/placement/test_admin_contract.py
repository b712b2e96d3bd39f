"""What the nodes show and what their administrators read are the same, although neither imports the other."""

import msgspec
import pytest

from context_node.runtime import admin, calls
from context_operator import view
from context_operator.view import view_of


@pytest.mark.parametrize("name", ["ReplicaView", "ShardView", "ArchiveView", "NodeView", "ClusterView", "SelfView", "NodePolicies"])
def test_both_sides_know_the_same_fields(name: str) -> None:
    ours, theirs = getattr(admin, name), getattr(view, name)
    assert [field.name for field in msgspec.structs.fields(ours)] == [field.name for field in msgspec.structs.fields(theirs)]


def test_what_a_node_shows_can_be_read_as_json_and_as_it_is() -> None:
    replica = admin.ReplicaView(1 << 40, 1, True, True, 7)
    shard = admin.ShardView(0, False, 1, 2, 7, False, 0, [replica])
    archive = admin.ArchiveView(False, False, "login", "Postgres: no", 3, 400, 5.5)
    node = admin.NodeView(1, "n1", "a", "h:4001", "h:4000", True, True, "1", 1, False, False, False, 1, 1, archive)
    shown = admin.ClusterView("c", 1, 0, 1, 3, 1, 1, 0, 0, [node], [shard], archive)
    assert view_of(shown) == view_of(msgspec.json.decode(msgspec.json.encode(shown)))
    assert view_of(shown).name_of(1) == "n1"


def test_a_node_that_tells_nothing_of_its_archive_is_understood_by_nodes_and_administrators() -> None:
    status = calls.NodeStatus(1, "1", 1, True, "", (), archive=admin.ArchiveView(True, False, "", "", 0, 0, 0.0))
    told = msgspec.msgpack.decode(msgspec.msgpack.encode(status))
    # A version before this one says one word less, and reads one that says more.
    older = msgspec.msgpack.encode(told[:-1])
    assert msgspec.msgpack.decode(older, type=calls.NodeStatus) == msgspec.structs.replace(status, archive=None)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([*told, "a newer word"]), type=calls.NodeStatus) == status
    node = admin.NodeView(1, "n1", "a", "h:4001", "h:4000", True, True, "1", 1, False, False, False, 1, 1)
    shown = msgspec.to_builtins(admin.ClusterView("c", 1, 0, 1, 3, 1, 1, 0, 0, [node], []))
    del shown["archive"], shown["nodes"][0]["archive"]
    assert view_of(shown).archive is None
