"""The shapes on the wire: what a body must look like, and what an answer looks like.

Knows fields, types and ranges; the same types decode bodies and make the OpenAPI document, so that the two cannot drift. Does not know
what the fields do. Invariants: a field that a type does not have is refused; in request types `null` means the same as leaving the field
out.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from context_node.runtime.admin import NodePolicies

SEQ_MAX = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly; no seq or version comes near."""

Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX, description="A message's place in its history: 1, 2, 3, … without holes.")]
Count = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Version = Annotated[int, Meta(ge=0, le=SEQ_MAX, description="The window's version.")]
Budget = Annotated[int, Meta(ge=1, le=10_000_000, description="Most tokens that the window may hold.")]
Ratio = Annotated[float, Meta(gt=0, le=1)]
Tokens = Annotated[int, Meta(ge=0, le=10_000_000)]
JsonObject = dict[str, Any]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339, UTC, with milliseconds.")]
MetadataObject = Annotated[JsonObject, Meta(description="Any JSON object, at most 16 KiB.")]
PART = {"$ref": "#/components/schemas/Part"}
"""What the document says of a part. Parts are decoded as plain objects: whatever they hold is kept."""
Parts = Annotated[
    list[JsonObject],
    Meta(description="Each an object with a string `type`, kept as it came.", extra_json_schema={"x-items": PART}),
]
MessageId = Annotated[
    str, Meta(min_length=1, max_length=256, description="Your own name for the message: a retry with it never appends twice.")
]
Role = Annotated[str, Meta(min_length=1, max_length=32, extra_json_schema={"pattern": "^[a-z_]{1,32}$"})]


class MessageBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A message: `role` and `parts`; or an OpenAI chat message (`content`, `tool_calls`, `tool_call_id`), which becomes parts. What a
    read adds to a message (`seq`, `inserted_at`, `covers`) is taken and ignored, so that messages of a window can be sent back as they
    are."""

    role: Role
    parts: Parts | None = None
    metadata: MetadataObject | None = None
    token_count: Annotated[Tokens, Meta(description="What the message costs, if you know; wins over the server's count.")] | None = None
    id: MessageId | None = None
    pinned: bool | None = None
    content: str | list[JsonObject] | None = None
    tool_calls: list[JsonObject] | None = None
    tool_call_id: str | None = None
    name: Annotated[str, Meta(description="OpenAI's `name` of a participant; kept in the metadata.")] | None = None
    refusal: str | None = None
    audio: JsonObject | None = None
    annotations: Annotated[list[JsonObject], Meta(description="OpenAI's annotations; kept in the metadata.")] | None = None
    seq: Annotated[int, Meta(description="Ignored: a message's place is given by the server.")] | None = None
    inserted_at: Annotated[str, Meta(description="Ignored: the server's time counts.")] | None = None
    covers: Annotated[list[int], Meta(description="Ignored: what a summary covers is said by the request.")] | None = None


class AppendBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One message, or several that are appended atomically. Exactly one of the two fields."""

    message: MessageBody | None = None
    messages: Annotated[list[MessageBody], Meta(min_length=1)] | None = None
    if_version: Version | None = None
    if_seq: Annotated[int, Meta(ge=0, le=SEQ_MAX, description="Must equal `last_seq`.")] | None = None


class PolicyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a window is compacted: a `strategy` with its `config`, or `ref`, the name of a policy. Exactly one of `strategy` and `ref`."""

    strategy: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    config: JsonObject | None = None
    ref: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class ContextBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A context's configuration. What is left out keeps its value, or takes the cluster's default at creation."""

    token_budget: Budget | None = None
    trigger_ratio: Annotated[Ratio, Meta(description="Compaction starts above this share of the room.")] | None = None
    target_ratio: Annotated[Ratio, Meta(description="Compaction ends at or below this share; below `trigger_ratio`.")] | None = None
    policy: PolicyBody | None = None
    tokenizer: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    metadata: MetadataObject | None = None
    recount: Annotated[bool, Meta(description="Count the window again with the tokenizer.")] | None = None


class PatchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON merge patch (RFC 7396) of the metadata: `null` removes a key."""

    metadata: JsonObject


class CompactBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rewrite of the window: `replacement` for all of it, for `covers`, or for what is not newer than `through_seq`; or `rebuild`."""

    replacement: list[MessageBody] | None = None
    covers: Annotated[list[Seq], Meta(min_length=2, max_length=2, description="[from_seq, to_seq], inclusive.")] | None = None
    through_seq: Seq | None = None
    if_version: Version | None = None
    rebuild: Annotated[bool, Meta(description="Make the window anew from history.")] | None = None
    dry_run: Annotated[bool, Meta(description="Not available yet.")] | None = None


class NamedPolicyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy that contexts refer to by name."""

    strategy: Annotated[str, Meta(min_length=1, max_length=64)]
    config: JsonObject | None = None
    token_budget: Budget | None = None
    trigger_ratio: Ratio | None = None
    target_ratio: Ratio | None = None
    tokenizer: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    default: bool | None = None


# Answers. They describe what the handlers write; the tests hold every answer against them.


class Part(msgspec.Struct, frozen=True):
    """A part of a message. Only `type` is common to all; see the table of parts in the documentation."""

    type: Annotated[str, Meta(min_length=1)]


class AppendAnswer(msgspec.Struct, frozen=True):
    """What an append did. `seq` is that of the last message; `first_seq` and `last_seq` come with a batch."""

    seq: Seq
    version: Version
    token_estimate: Count
    first_seq: Seq | msgspec.UnsetType = msgspec.UNSET
    last_seq: Seq | msgspec.UnsetType = msgspec.UNSET
    forced: Literal[True] | msgspec.UnsetType = msgspec.UNSET


class VersionAnswer(msgspec.Struct, frozen=True):
    """The window's version after a rewrite."""

    version: Version


class RestoreAnswer(msgspec.Struct, frozen=True):
    """What is there of a context that is being restored."""

    last_seq: Count
    whole: bool


class PolicyAnswer(msgspec.Struct, frozen=True):
    """A context's policy."""

    strategy: str | msgspec.UnsetType = msgspec.UNSET
    config: JsonObject | msgspec.UnsetType = msgspec.UNSET
    ref: str | msgspec.UnsetType = msgspec.UNSET
    generation: int | msgspec.UnsetType = msgspec.UNSET
    deleted: bool | msgspec.UnsetType = msgspec.UNSET


class ContextAnswer(msgspec.Struct, frozen=True):
    """A context. `used_tokens` is the size of its window."""

    id: str
    status: Literal["active", "tombstoned", "restoring"]
    token_budget: int
    trigger_ratio: float
    target_ratio: float
    policy: PolicyAnswer
    tokenizer: str
    metadata: JsonObject
    version: int
    revision: int
    incarnation: str
    last_seq: Count
    archived_seq: Count
    used_tokens: Count
    created_at: Timestamp
    updated_at: Timestamp
    tombstoned_at: Timestamp | None


class ContextsAnswer(msgspec.Struct, frozen=True):
    """A page of the list of contexts; `next_cursor` is null on the last one."""

    contexts: list[ContextAnswer]
    next_cursor: str | None


class Message(msgspec.Struct, frozen=True):
    """A message as it is kept."""

    seq: Seq
    role: str
    parts: Parts
    metadata: JsonObject
    token_count: Count
    inserted_at: Timestamp
    id: str | msgspec.UnsetType = msgspec.UNSET
    pinned: bool | msgspec.UnsetType = msgspec.UNSET


class MessagesAnswer(msgspec.Struct, frozen=True):
    """A page of a history."""

    messages: list[Message]
    last_seq: Count


class WindowItem(msgspec.Struct, frozen=True):
    """A message of the window. The `seq` of a summary (which has `covers`) and of a marker for a missing result is null."""

    seq: Seq | None
    role: str
    parts: Parts
    metadata: JsonObject
    token_count: Count
    covers: list[Seq] | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    inserted_at: Timestamp | msgspec.UnsetType = msgspec.UNSET


class Segment(msgspec.Struct, frozen=True):
    """A stretch of history and what the window has of it."""

    type: Literal["live", "summary", "gap"]
    from_seq: Seq
    to_seq: Seq


class WindowAnswerBody(msgspec.Struct, frozen=True):
    """What the model gets. `over_budget` only where the floor itself is larger than the budget."""

    messages: list[WindowItem]
    version: Version
    last_seq: Count
    token_budget: Budget
    used_tokens: Count
    token_count: Count
    needs_compaction: bool
    over_budget: bool
    segments: list[Segment]
    prefix_hash: str
    stable_through_seq: Count
    over_budget_reason: str | msgspec.UnsetType | None = msgspec.UNSET
    forced: bool | msgspec.UnsetType = msgspec.UNSET


class NamedPolicyAnswer(msgspec.Struct, frozen=True):
    """A policy by name. `generation` grows by one with each change."""

    name: str
    generation: int
    strategy: str
    config: JsonObject
    token_budget: int | None
    trigger_ratio: float | None
    target_ratio: float | None
    tokenizer: str | None
    default: bool
    created_at: Timestamp
    updated_at: Timestamp


class PoliciesAnswer(msgspec.Struct, frozen=True):
    policies: list[NamedPolicyAnswer]


class TicketAnswer(msgspec.Struct, frozen=True):
    """A short-lived pass for one stream: give it as `?ticket=` where no header can be set."""

    ticket: str
    expires_in_s: float


class HealthAnswer(msgspec.Struct, frozen=True):
    status: Literal["live", "ready", "not_ready"]
    version: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


Epoch = Annotated[int, Meta(ge=0, le=2**62, description="The administrator's epoch; 0 is not compared.")]
NodeNumber = Annotated[int, Meta(ge=1, le=2**22)]
ReplicaId = Annotated[int, Meta(ge=1, le=2**62)]


class BeginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The id of the cluster that the node shall begin: 32 hexadecimal digits, new for every cluster."""

    cluster_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


class NodePoliciesAnswer(msgspec.Struct, frozen=True):
    """By node which generation of each named policy its replicas follow."""

    nodes: list[NodePolicies]


class ClusterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wished of the cluster; what is left out stays. `replication_factor` is odd; `feature_level` never goes back, and every node
    must understand it."""

    replication_factor: Annotated[int, Meta(ge=1, le=9)] | None = None
    feature_level: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    epoch: Epoch = 0


class NodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wished of a node; what is left out stays. A removed node never comes back under its number."""

    cordoned: bool | None = None
    draining: bool | None = None
    removed: bool | None = None
    epoch: Epoch = 0


class LearnerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: NodeNumber
    epoch: Epoch = 0


class MembersBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Replica ids: learners that become voters, and members that leave."""

    promote: Annotated[list[ReplicaId], Meta(max_length=9)] = []
    remove: Annotated[list[ReplicaId], Meta(max_length=9)] = []
    epoch: Epoch = 0


class LeaderBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: NodeNumber
    epoch: Epoch = 0


class Problem(msgspec.Struct, frozen=True):
    """Every error. `error` is for programs, `message` says what to do, `details` say which field or what the current state is."""

    error: Annotated[str, Meta(extra_json_schema={"pattern": "^[a-z_]+$"})]
    message: str
    details: JsonObject
