"""What is written to the Raft log: frozen, versioned values that carry all that is not a function of the log.

The proposer puts times, token counts, digests, defaults and limits into a command, so that every replica answers the same (W5). A type's
tag holds its revision: behaviour changes by a new type, never by editing an old one. Encoded as MessagePack.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec

from context_node.contexts.cluster import AdvanceEpoch, MarkNode, RaiseLevel, RegisterNode, RegisterNode1, SetReplication
from context_node.contexts.items import MESSAGE_OVERHEAD_TOKENS
from context_node.contexts.parts import Mark, mark_part
from context_node.contexts.requests import NewMessage

encode_json = msgspec.json.Encoder().encode


class Draft(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A message ready to be appended: its JSON members (all but `seq` and `inserted_at`, without braces), cost and marks.

    `digest` (16 bytes) tells two messages of one id apart; it does not depend on the server's token counts.
    """

    role: str
    fields: bytes
    tokens: int
    marks: tuple[Mark, ...]
    digest: bytes
    id: str | None = None
    pinned: bool = False


class Rules(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The proposer's settings that bear on the state: items a window holds at most, keys kept per context, and for how long (ms)."""

    window_items_max: int = 10_000
    keys_max: int = 4_096
    keys_ttl_ms: int = 86_400_000
    metadata_bytes_max: int = 16_384


class KeyUse(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An idempotency key and the digest (16 bytes) of the request that carries it."""

    key: str
    digest: bytes


class Defaults(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a new context gets where neither it nor its policy says."""

    token_budget: int = 8_192
    trigger_ratio: float = 0.7
    target_ratio: float | None = None
    tokenizer: str = "o200k_base"
    policy_ref: str | None = None


class PolicySpec(msgspec.Struct, frozen=True, array_like=True):
    """A context's own choice: a strategy with its config (JSON bytes), or the name of a policy."""

    strategy: str | None = None
    config: bytes = b"{}"
    ref: str | None = None


class AppendMessages(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="append/1"):
    """Append drafts to a context; `create` holds the defaults if an unknown id may become a context."""

    context_id: str
    at_ms: int
    rules: Rules
    drafts: tuple[Draft, ...]
    batch: bool = False
    if_version: int | None = None
    if_seq: int | None = None
    create: Defaults | None = None
    key: KeyUse | None = None


class Recount(msgspec.Struct, frozen=True, array_like=True):
    """New part costs for one window item, named by its kind and seq. Of summaries with the same seq, the first recount is for
    the first in the window, and so on; a message's counts are for all its parts, wherever they stand."""

    kind: int
    seq: int
    counts: tuple[int, ...]


class PutConfig(msgspec.Struct, frozen=True, array_like=True, tag="put/1"):
    """Create a context or change its configuration; None keeps. `recounts` come with a new tokenizer if the window is to be
    counted again."""

    context_id: str
    at_ms: int
    rules: Rules
    defaults: Defaults
    token_budget: int | None = None
    trigger_ratio: float | None = None
    target_ratio: float | None = None
    policy: PolicySpec | None = None
    tokenizer: str | None = None
    metadata: bytes | None = None
    recounts: tuple[Recount, ...] = ()
    key: KeyUse | None = None


class PatchMetadataCommand(msgspec.Struct, frozen=True, array_like=True, tag="patch/1"):
    """RFC 7396 merge patch (JSON bytes) of the metadata."""

    context_id: str
    at_ms: int
    rules: Rules
    patch: bytes
    key: KeyUse | None = None


class Tombstone(msgspec.Struct, frozen=True, array_like=True, tag="tombstone/1"):
    """Mark a context deleted: readable, but closed to writes."""

    context_id: str
    at_ms: int
    rules: Rules


class Purge(msgspec.Struct, frozen=True, array_like=True, tag="purge/1"):
    """Erase a context for good."""

    context_id: str
    at_ms: int
    rules: Rules


class PurgeEverywhere(msgspec.Struct, frozen=True, array_like=True, tag="purge-archive/1"):
    """As `Purge`, and remember that the archive may hold the context too, until `NoteArchived` says that it is erased there."""

    context_id: str
    at_ms: int
    rules: Rules


class Archived(msgspec.Struct, frozen=True, array_like=True):
    """The archive holds all messages of a context up to `seq`, and its record as it was at `revision`. Of what it holds, messages up to
    `trimmed_seq` may leave the hot store, but for those that the window holds."""

    context_id: str
    incarnation: int
    seq: int
    revision: int = 0
    trimmed_seq: int = 0


class NoteArchived(msgspec.Struct, frozen=True, array_like=True, tag="archived/1"):
    """What the archive has confirmed: how far it holds contexts, and which (id, incarnation) are erased there."""

    at_ms: int
    archived: tuple[Archived, ...] = ()
    erased: tuple[tuple[str, int], ...] = ()


class UseArchive(msgspec.Struct, frozen=True, array_like=True, tag="archive/1"):
    """From here on marks are of this archive. If it is another than before, everything is to be copied anew."""

    at_ms: int
    archive_id: str


class RewriteWindow(msgspec.Struct, frozen=True, array_like=True, tag="rewrite/1"):
    """Put `replacement` in place of a range of the window (`covers`), or of all of it up to `through_seq`."""

    context_id: str
    at_ms: int
    rules: Rules
    replacement: tuple[Draft, ...]
    covers: tuple[int, int] | None = None
    through_seq: int | None = None
    if_version: int | None = None
    key: KeyUse | None = None


class Restored(msgspec.Struct, frozen=True, array_like=True):
    """A message of the history on its way back into the window: its seq, body and stored info, as the leader read them."""

    seq: int
    body: bytes
    info: bytes


class RebuildWindow(msgspec.Struct, frozen=True, array_like=True, tag="rebuild/1"):
    """Make the window anew from the newest part of the history, `messages`, read through `through_seq`."""

    context_id: str
    at_ms: int
    rules: Rules
    messages: tuple[Restored, ...]
    through_seq: int
    if_version: int | None = None
    key: KeyUse | None = None


class PinMessage(msgspec.Struct, frozen=True, array_like=True, tag="pin/1"):
    """Pin a message, or unpin it. `restored` is its whole unit in window order where the window no longer has it."""

    context_id: str
    at_ms: int
    rules: Rules
    seq: int
    pinned: bool
    restored: tuple[Restored, ...] = ()


class RestoredMessage(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A message of another cluster's history: its body and stored info, what its id remembers if it has one (the id, version, estimate and
    digest; see `IdRow`), and whether the window of its context will hold it."""

    body: bytes
    info: bytes
    id: tuple[str, int, int, bytes] | None = None
    is_held: bool = False


class RestoreEnd(msgspec.Struct, frozen=True, array_like=True):
    """What makes a context of restored messages: `record` is what the other cluster stored of it, `last_seq` the newest message that was
    found. Where the record is ahead of that, the window is made anew from the messages from `rebuild_from` on; else that is 0.
    `is_current`: the window was compacted by the newest generation of its named policy."""

    record: bytes
    last_seq: int
    rebuild_from: int = 0
    is_current: bool = True


class RestoreContext(msgspec.Struct, frozen=True, array_like=True, tag="restore/1"):
    """Put `messages`, from `first_seq` on, into a context that is being restored; the first makes it. With `end` it is whole. `source`
    names where they come from, so that two sources never mix."""

    context_id: str
    at_ms: int
    rules: Rules
    source: str
    first_seq: int
    messages: tuple[RestoredMessage, ...] = ()
    end: RestoreEnd | None = None


class PolicyRecord(msgspec.Struct, frozen=True, array_like=True):
    """A policy by name, as it is replicated. `config` is JSON bytes."""

    name: str
    generation: int
    strategy: str
    config: bytes
    token_budget: int | None
    trigger_ratio: float | None
    target_ratio: float | None
    tokenizer: str | None
    default: bool
    created_at_ms: int
    updated_at_ms: int
    deleted: bool = False


class PutPolicyCommand(msgspec.Struct, frozen=True, array_like=True, tag="policy-put/1"):
    """In the system group: create or replace a policy. The generation and times of `record` are set by apply."""

    at_ms: int
    record: PolicyRecord


class DeletePolicyCommand(msgspec.Struct, frozen=True, array_like=True, tag="policy-delete/1"):
    """In the system group: stop new references to a policy."""

    at_ms: int
    name: str


class CopyPolicy(msgspec.Struct, frozen=True, array_like=True, tag="policy-copy/1"):
    """In a shard: take over a policy of the system group if it is newer than the copy here."""

    at_ms: int
    record: PolicyRecord


class Compare(msgspec.Struct, frozen=True, array_like=True, tag="compare/1"):
    """Every replica hashes its state right behind this entry and keeps the digest under `mark`; the state stays as it is."""

    at_ms: int
    mark: str


ContextCommand = (
    AppendMessages
    | PutConfig
    | PatchMetadataCommand
    | Tombstone
    | Purge
    | PurgeEverywhere
    | RewriteWindow
    | RebuildWindow
    | PinMessage
    | RestoreContext
)
PolicyCommand = PutPolicyCommand | DeletePolicyCommand | CopyPolicy
ClusterCommand = RegisterNode1 | RegisterNode | MarkNode | SetReplication | RaiseLevel | AdvanceEpoch
Command = ContextCommand | PolicyCommand | ClusterCommand | Compare | NoteArchived | UseArchive

encode_command = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def decode_command(data: bytes) -> Command:
    """The command in an entry. Raises `msgspec.DecodeError` for bytes that are none: a newer revision, or a defect."""
    return _decoder.decode(data)


def draft(
    message: NewMessage, part_tokens: Sequence[int], output_tokens: Mapping[int, int] | None = None, needs_digest: bool = True
) -> Draft:
    """Make a message ready for the log. `part_tokens` are the costs of its parts: the server's counts, or the client's `token_count` spread
    over them; `output_tokens` by position the costs of outputs alone, for parts that are call and result in one. A message without an
    id, in a request without a key, needs no digest."""
    parts = message.parts
    if len(parts) == 1:
        marks: tuple[Mark, ...] = (mark_part(parts[0], part_tokens[0], output_tokens[0] if output_tokens else 0),)
    else:
        outputs = output_tokens or {}
        marks = tuple(mark_part(part, part_tokens[place], outputs.get(place, 0)) for place, part in enumerate(parts))
    tokens = message.token_count
    if tokens is None:
        tokens = MESSAGE_OVERHEAD_TOKENS + sum(part_tokens)
    said = b'"role":"%b","parts":%b,"metadata":%b' % (
        message.role.encode(),
        encode_json(parts),
        encode_json(message.metadata) if message.metadata else b"{}",
    )
    name = b'"id":%b,' % encode_json(message.id) if message.id is not None else b""
    digest = b""
    if needs_digest:
        asked = b"%b%b|%d|%d" % (name, said, -1 if message.token_count is None else message.token_count, message.pinned)
        digest = blake2b(asked, digest_size=16).digest()
    return Draft(message.role, b'%b%b,"token_count":%d' % (name, said, tokens), tokens, marks, digest, message.id, message.pinned)
