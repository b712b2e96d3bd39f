"""Contexts that come back from an archive: their messages in parts, their window with the last.

Knows SEMANTICS.md as far as a context has to go on exactly as it was. While its messages come a context is RESTORING: its window holds
those that the archived one names, so that the last part needs the record alone, however large the window is. Invariants: a part that is
refused changes nothing; a part that comes twice does nothing the second time; messages, ids, window and counters are those of the record,
and only what is bound to the cluster itself is its own: incarnation, marks of its archive, keys, the generations of named policies.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from context_node.contexts import rewriting
from context_node.contexts.changes import rowid
from context_node.contexts.commands import PolicySpec, RestoreContext, Restored, RestoredMessage, RestoreEnd, encode_json
from context_node.contexts.compaction import compact
from context_node.contexts.context import (
    MARKED,
    RESTORING,
    RUN,
    SPECIAL,
    Config,
    Context,
    Head,
    IdRow,
    Place,
    restore_items,
)
from context_node.contexts.items import Info, Item, info_decoder, info_encoder, live_item
from context_node.contexts.refusals import Unavailable, Unprocessable, VersionConflict
from context_node.contexts.replies import Reply, RestoredUpTo
from context_node.contexts.restore_checks import MALFORMED, StoredContext, parse_record
from context_node.contexts.shard_state import Event, ShardState
from context_node.contexts.window import Window

_UNTIL_WHOLE = Config(token_budget=8_192, trigger_ratio=0.7, target_ratio=None, policy=PolicySpec(), tokenizer="o200k_base")
"""What a context shows as its configuration until the last part brings its own."""


_packed = msgspec.msgpack.Encoder().encode


class Restore(msgspec.Struct, frozen=True, array_like=True):
    """A part of a restore, as it is asked for; see `RestoreContext`."""

    source: str
    first_seq: int
    messages: tuple[RestoredMessage, ...] = ()
    end: RestoreEnd | None = None


def restore(state: ShardState, index: int, command: RestoreContext) -> tuple[Reply, Event | None]:
    """Apply a part of a restore. Raises a `Refusal`, and then has changed nothing."""
    context = state.contexts.get(command.context_id)
    if context is not None and is_restored(context, command.end):
        return RestoredUpTo(context.head.last_seq, True), None
    last_seq = check_goes_on(context, command.source, command.first_seq)
    fresh = command.messages[max(0, last_seq + 1 - command.first_seq) :]
    held = _held_items(fresh, last_seq)
    end, stored = command.end, None
    items: list[Item] = []
    if end is not None:
        stored = parse_record(end.record)
        known = [*(context.window.items if context is not None else ()), *held]
        items = _window_items(state, stored, end, known, last_seq + len(fresh))
    if context is None:
        context = _begun(state, index, command)
    _add(state, context, fresh, held)
    if end is None or stored is None:
        return RestoredUpTo(context.head.last_seq, False), None
    _finish(state, context, command, stored, end, items)
    return RestoredUpTo(context.head.last_seq, True), Event("configured", context.id)


def check_goes_on(context: Context | None, source: str, first_seq: int) -> int:
    """Whether messages from `first_seq` on may be added to what is there; the newest seq that is. Raises `VersionConflict`."""
    if context is None:
        last_seq = 0
    elif context.head.status != RESTORING or context.head.metadata != _told(source):
        raise VersionConflict(
            "Another context of this id is here; it was left as it is. Purge it to have the archived one.",
            version=context.head.version,
            last_seq=context.head.last_seq,
        )
    else:
        last_seq = context.head.last_seq
    if first_seq > last_seq + 1:
        raise VersionConflict(
            f"Messages {last_seq + 1} to {first_seq - 1} have not been restored yet; begin there.", version=0, last_seq=last_seq
        )
    return last_seq


def _told(source: str) -> bytes:
    """The metadata of a context that is being restored."""
    return encode_json({"restored_from": source})


def is_restored(context: Context, end: RestoreEnd | None) -> bool:
    """Whether the context is what the end of a restore would make of it. Raises `Unprocessable` for a record that cannot be read."""
    if end is None or context.head.status == RESTORING or context.head.last_seq != end.last_seq:
        return False
    stored = parse_record(end.record)
    present = context.head
    if end.rebuild_from:
        return _kept(present) == _kept(stored.head, more=1)
    window = context.window
    return (
        _kept(present) == _kept(stored.head)
        and _packed(context.window_places()) == _packed(stored.window.places)
        and (window.rewritten_seq, window.stable_count) == (stored.window.rewritten_seq, stored.window.stable_count)
    )


def _kept(head: Head, more: int = 0) -> tuple[Any, ...]:
    """What of a head a restore takes over; `more` for the rewrite that made the window anew."""
    times = head.created_at_ms, head.updated_at_ms, head.tombstoned_at_ms
    return head.status, head.config, head.metadata, head.version + more, head.revision + more, times


def _held_items(messages: Sequence[RestoredMessage], last_seq: int) -> list[Item]:
    """The items of those messages, which follow `last_seq`, that the window will hold."""
    try:
        return [
            live_item(seq, message.body, info_decoder.decode(message.info))
            for seq, message in enumerate(messages, last_seq + 1)
            if message.is_held
        ]
    except MALFORMED as error:
        raise Unprocessable("A message is not as a node archives it.") from error


def _window_items(state: ShardState, stored: StoredContext, end: RestoreEnd, known: Sequence[Item], last_seq: int) -> list[Item]:
    """The items of the archived window, as far as its messages are there. Raises a `Refusal`."""
    head, places = stored.head, stored.window.places
    ref = head.config.policy.ref
    if ref is not None and ref not in state.policies:
        raise Unavailable(f"The policy {ref!r} has not reached this shard yet; try again shortly.", retry_after_s=1)
    if end.last_seq != last_seq or head.last_seq < last_seq or (head.last_seq > last_seq) != (end.rebuild_from > 0):
        raise Unprocessable(f"There are {last_seq} messages, which is not what the record goes with.", last_seq=last_seq)
    if head.last_seq > last_seq:
        places = _places_upto(places, last_seq)
    messages = {item.seq: (item.original, Info(item.role, item.tokens, item.marks, 0)) for item in known}
    try:
        items = restore_items(places, messages)
        if any(place >= len(item.marks) for item in items for place in (*item.skipped, *item.cleared)):
            raise LookupError
    except MALFORMED as error:
        raise Unprocessable("The record's window does not go with the messages.") from error
    return items


def _places_upto(places: Sequence[Place], last_seq: int) -> list[Place]:
    """A window's entries without what came after `last_seq`."""
    kept: list[Place] = []
    for place in places:
        if place[0] == RUN:
            if place[1] <= last_seq:
                kept.append([RUN, place[1], min(place[2], last_seq)])
        elif place[1 if place[0] in (SPECIAL, MARKED) else 2] <= last_seq:
            kept.append(place)
    return kept


def _begun(state: ShardState, index: int, command: RestoreContext) -> Context:
    context = state.create(index, command.context_id, _UNTIL_WHOLE)
    # The revision stays 0 until the context is whole: what is archived of it meanwhile is older than what it will be.
    context.head.status, context.head.metadata = RESTORING, _told(command.source)
    return context


def _add(state: ShardState, context: Context, messages: Sequence[RestoredMessage], held: Sequence[Item]) -> None:
    changes, head, window = state.changes, context.head, context.window
    for message in messages:
        head.last_seq = seq = head.last_seq + 1
        row = (rowid(context.ordinal, seq), message.body, message.info)
        changes.messages.append(row)
        changes.pending_bytes += len(message.body) + len(message.info)
        context.tail.append(row)
        if message.id is not None:
            name, version, estimate, digest = message.id
            context.fresh_ids[name] = IdRow(seq, version, estimate, digest)
    count = len(window.items)
    window.items += held
    # Units do not matter yet, but the record tells the tokens, and they must be those of the window read back (W5).
    window.tokens += sum(item.tokens for item in held)
    window.size_bytes += sum(len(item.body) for item in held)
    context.note_joined(count)
    changes.touch(context)


def _finish(
    state: ShardState, context: Context, command: RestoreContext, stored: StoredContext, end: RestoreEnd, items: Sequence[Item]
) -> None:
    own, window = context.head, stored.window
    fresh = [item for item in context.window.items if item.seq >= end.rebuild_from]
    ref = stored.head.config.policy.ref
    generation = stored.head.policy_generation
    if ref is not None:
        # Generations are numbered anew here; 0 is none of them, so that a policy the window has yet to follow acts at the next command.
        generation = state.policies[ref].record.generation if end.is_current else 0
    context.head = msgspec.structs.replace(
        stored.head,
        incarnation=own.incarnation,
        last_seq=own.last_seq,
        archived_seq=own.archived_seq,
        archived_revision=own.archived_revision,
        archive_epoch=own.archive_epoch,
        trimmed_seq=own.trimmed_seq,
        policy_generation=generation,
        key_number=0,
        keys_from=1,
        keys_since_ms=0,
    )
    context.window = Window(rewritten_seq=window.rewritten_seq, stable_count=window.stable_count, forced=window.forced)
    context.window.replace_items(items)
    context.rewritten, context.rewritten_floor = window.rewritten, window.rewritten_floor
    context.places = context.plan = context.rendered = None
    state.follow(context, None, ref)
    if end.rebuild_from:
        _rebuild(state, context, command, fresh)
    state.changes.touch(context)


def _rebuild(state: ShardState, context: Context, command: RestoreContext, fresh: Sequence[Item]) -> None:
    """The window anew, as by hand: the archived one ends in messages that never came."""
    head = context.head
    head.version += 1
    head.revision += 1
    messages = [Restored(item.seq, item.original, info_encoder.encode(Info(item.role, item.tokens, item.marks, 0))) for item in fresh]
    plan = state.plan(context, command.rules)
    window = rewriting.rebuilt(context, messages, head.last_seq, lambda window: compact(window, plan).changed)
    context.window.replace_items(window.items)
    context.mark_rewritten(head.version, 1, head.last_seq)
    state.note_rewrite(context, False)
