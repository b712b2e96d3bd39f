"""Between the state machine's changes and the rows of a state database: the one place that knows both.

Invariant: what is drained is exactly what commands up to the applied index changed; reading it back gives equal contexts (W5).
"""

import msgspec

from context_node.contexts.changes import rowid
from context_node.contexts.context import KeyRow
from context_node.contexts.machine import Machine
from context_node.contexts.policies import StoredPolicy, policy_encoder
from context_node.contexts.replies import Reply
from context_node.runtime import state_rows
from context_node.runtime.state_rows import Applied, StateChanges


class MachineRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the state machine keeps besides contexts and policies."""

    next_ordinal: int = 1
    cluster: bytes = b""
    erasures: tuple[tuple[str, int], ...] = ()
    archive_id: str = ""
    archive_epoch: int = 0
    has_trimmed: bool = False


_encode = msgspec.msgpack.Encoder().encode
_machines = msgspec.msgpack.Decoder(MachineRecord)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def machine_record(data: bytes) -> MachineRecord:
    """What `state_changes` put into `Applied.machine`."""
    return _machines.decode(data) if data else MachineRecord()


def applied_of(machine: Machine, index: int, term: int, conf_state: bytes) -> Applied:
    """How far a machine is."""
    record = MachineRecord(
        machine.next_ordinal,
        machine.cluster.encode(),
        tuple(machine.erasures),
        machine.archive_id,
        machine.archive_epoch,
        machine.has_trimmed,
    )
    return Applied(index, term, conf_state, machine.clock_ms, _encode(record))


def state_changes(machine: Machine, index: int, term: int, conf_state: bytes) -> StateChanges:
    """The machine's changes as rows, with the applied index that they belong to."""
    changes = machine.changes
    rows = StateChanges(
        applied_of(machine, index, term, conf_state),
        deleted_contexts=changes.purged,
        trimmed=[(rowid(ordinal, first), rowid(ordinal, last)) for ordinal, gone in changes.trimmed.items() for first, last in gone],
        messages=changes.messages,
        rewrites=changes.rewrites,
        keys_below=[(ordinal, number, at) for ordinal, (number, at) in changes.keys_below.items()],
    )
    for context in changes.contexts.values():
        head, ordinal = context.head, context.ordinal
        metadata = head.metadata.decode()
        rows.contexts.append((ordinal, context.id, head.status, head.created_at_ms, head.updated_at_ms, metadata, context.record()))
        for message_id, row in context.fresh_ids.items():
            rows.message_ids.append((ordinal, message_id, row.seq, row.version, row.estimate, row.digest))
        for key, kept in context.fresh_keys.items():
            rows.keys.append((ordinal, key, kept.number, kept.at_ms, kept.digest, _encode(kept.reply)))
    for name in sorted(changes.policies):
        policy = machine.policies[name]
        record = policy_encoder.encode(StoredPolicy(policy.record, policy.users))
        rows.policies.append((name, policy.record.generation, int(policy.record.deleted), record))
    return rows


def key_row(row: state_rows.KeyRow | None) -> KeyRow | None:
    """A key as the state machine knows it."""
    return None if row is None else KeyRow(row.number, row.at, row.digest, _replies.decode(row.reply))
