"""What nodes ask of each other, as bytes: a name with arguments, and an answer or a refusal.

Knows the table of calls with their types, and how a refusal travels. Does not know who asks, who answers, or connections. Invariant: what
is decoded has the types that the call declares; anything else is refused before it reaches a handler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from context_node.contexts import refusals
from context_node.contexts.cluster import NodeRecord
from context_node.contexts.refusals import Refusal
from context_node.contexts.replies import Appended, ContextView, NamedPolicyView, Put, RestoredUpTo, Rewritten
from context_node.contexts.requests import Append, Compact, ListContexts, PatchMetadata, PutContext, PutPolicy
from context_node.contexts.restoring import Restore
from context_node.runtime.archive_view import ArchiveView
from context_node.runtime.not_here import NotHere
from context_node.runtime.reads import Listed, Page, WindowAnswer
from context_node.runtime.streams import Frame


class Member(msgspec.Struct, frozen=True, array_like=True):
    """What a store says of itself when it asks to be taken in; `revision` is the newest of the state machine that its node understands,
    `cluster_id` the cluster that it belongs to already, if any."""

    store: str
    name: str
    peer: str
    client: str
    zone: str
    revision: int = 1
    cluster_id: str = ""


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a `Member`: its number, whose cluster it is, into how many shards contexts are hashed, and who else is there."""

    number: int
    cluster_id: str
    shards: int
    nodes: tuple[NodeRecord, ...]


class Follower(msgspec.Struct, frozen=True, array_like=True):
    """What a leader knows of one replica. `state` is probe, replicate or snapshot."""

    replica_id: int
    match_index: int
    state: str
    is_active: bool


class ReplicaStatus(msgspec.Struct, frozen=True, array_like=True):
    """A replica as its node sees it. `leader` is a node's number, 0 if unknown; `followers` only where it leads."""

    shard: int
    replica_id: int
    is_leader: bool
    leader: int
    term: int
    applied: int
    commit: int
    last_index: int
    log_bytes: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]
    is_joint: bool
    failure: str | None
    followers: tuple[Follower, ...]


class NodeStatus(msgspec.Struct, frozen=True, array_like=True):
    """A node as it sees itself. `reason` says why it is not ready; `epoch` and `factor` are those of its replica of the system group,
    0 where it has none. `level`: the feature level that it knows; `revision`: what it understands. `archive` is None without one, and of
    a version that does not tell."""

    number: int
    version: str
    boot: int
    is_ready: bool
    reason: str
    replicas: tuple[ReplicaStatus, ...]
    epoch: int = 0
    factor: int = 0
    level: int = 1
    revision: int = 1
    has_slow_disk: bool = False
    archive: ArchiveView | None = None


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """The hash of a replica's state at a log index. Empty: it could not be taken at that entry."""

    index: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Kind:
    """The types of one call. `is_write`: an answer that was lost leaves the outcome unknown."""

    arguments: Any
    result: Any
    is_write: bool = False


_id = str
KINDS: Mapping[str, Kind] = {
    # Contexts: asked of the node that leads the shard, or of one that holds it.
    "append": Kind(tuple[_id, Append], Appended, is_write=True),
    "put_context": Kind(tuple[_id, PutContext], tuple[Put, ContextView], is_write=True),
    "patch_metadata": Kind(tuple[_id, PatchMetadata], ContextView, is_write=True),
    "delete_context": Kind(tuple[_id], None, is_write=True),
    "purge_context": Kind(tuple[_id], None, is_write=True),
    "compact": Kind(tuple[_id, Compact], Rewritten, is_write=True),
    "pin": Kind(tuple[_id, int, bool], Rewritten, is_write=True),
    "restore_context": Kind(tuple[_id, Restore], RestoredUpTo, is_write=True),
    "get_context": Kind(tuple[_id], ContextView),
    "page": Kind(tuple[_id, int | None, int, bool], Page),
    "tail": Kind(tuple[_id, int, int], Page),
    "window": Kind(tuple[_id, int | None, int | None, str | None], WindowAnswer),
    "list_shard": Kind(tuple[int, ListContexts], list[Listed]),
    "follow": Kind(tuple[_id, int], tuple[int, int]),
    "follow_next": Kind(tuple[int, float], tuple[list[Frame], int]),
    "follow_close": Kind(tuple[int], None),
    # Policies: asked of the node that leads the system group.
    "put_policy": Kind(tuple[str, PutPolicy], NamedPolicyView, is_write=True),
    "delete_policy": Kind(tuple[str], None, is_write=True),
    "get_policy": Kind(tuple[str], NamedPolicyView),
    "list_policies": Kind(tuple[()], list[NamedPolicyView]),
    # The cluster.
    "join": Kind(tuple[Member], Welcome, is_write=True),
    "nodes": Kind(tuple[()], tuple[NodeRecord, ...]),
    "describe": Kind(tuple[()], NodeStatus),
    "leader": Kind(tuple[int], int),
    "policies": Kind(tuple[()], tuple[int, dict[str, int]]),
    "mark_node": Kind(tuple[int, int, bool | None, bool | None, bool | None], None, is_write=True),
    "set_replication": Kind(tuple[int, int], None, is_write=True),
    "advance_epoch": Kind(tuple[int], None, is_write=True),
    "raise_level": Kind(tuple[int, int], None, is_write=True),
    "compare": Kind(tuple[int, str], None, is_write=True),
    "digest": Kind(tuple[int, str], Digest | None),
    # Replicas: asked of the shard's leader, or of the node that is to hold one.
    "create_replica": Kind(tuple[int, int], None, is_write=True),
    "add_learner": Kind(tuple[int, int], int, is_write=True),
    "change_members": Kind(tuple[int, tuple[int, ...], tuple[int, ...]], None, is_write=True),
    "transfer_leader": Kind(tuple[int, int], None, is_write=True),
    "snapshot_chunk": Kind(tuple[int, int, int], bytes),
    "snapshot_done": Kind(tuple[int, int, bool], None),
}

_encode = msgspec.msgpack.Encoder().encode
_questions: "msgspec.msgpack.Decoder[tuple[str, bytes]]" = msgspec.msgpack.Decoder(tuple[str, bytes])
_answers: "msgspec.msgpack.Decoder[tuple[str, bytes]]" = msgspec.msgpack.Decoder(tuple[str, bytes])
_refused: "msgspec.msgpack.Decoder[tuple[str, dict[str, Any]]]" = msgspec.msgpack.Decoder(tuple[str, dict[str, Any]])
_arguments = {name: msgspec.msgpack.Decoder(kind.arguments) for name, kind in KINDS.items()}
_results = {name: msgspec.msgpack.Decoder(kind.result) for name, kind in KINDS.items()}
_BY_CODE = {kind.code: kind for kind in vars(refusals).values() if isinstance(kind, type) and issubclass(kind, Refusal)}
_BY_CODE[NotHere.code] = NotHere


def encode_question(name: str, arguments: tuple[Any, ...]) -> bytes:
    """A call, for the wire."""
    return _encode((name, _encode(arguments)))


def decode_question(data: bytes) -> tuple[str, tuple[Any, ...]]:
    """The call in `data`. Raises `msgspec.MsgspecError` for bytes that are none, KeyError for a name of a newer version."""
    name, arguments = _questions.decode(data)
    return name, _arguments[name].decode(arguments)


def encode_answer(result: Any) -> bytes:
    """What a call gave."""
    return _encode(("", _encode(result)))


def encode_refusal(refusal: Refusal) -> bytes:
    """Why a call was refused."""
    return _encode((refusal.code, _encode((refusal.message, dict(refusal.details)))))


def decode_answer(name: str, data: bytes) -> Any:
    """What the call `name` gave. Raises the `Refusal` that came instead."""
    code, rest = _answers.decode(data)
    if not code:
        return _results[name].decode(rest)
    message, details = _refused.decode(rest)
    refusal = _BY_CODE.get(code, Refusal)(message)
    refusal.details = details
    raise refusal
