"""The state machine of a shard: commands in log order become replies, events and changes to store.

Knows SEMANTICS.md and nothing outside it: no clock, no I/O, no asyncio. The runtime loads the contexts that commands name (`contexts`)
and the keys and ids that they carry (`Found`) before it applies, and stores `changes` behind. Invariants: applying is total (a refusal is
a reply) and deterministic (the same log gives the same records, byte for byte); a command adds at most 1 to a context's version.
"""

from collections.abc import Sequence

import msgspec

from context_node.contexts import pinning, rewriting
from context_node.contexts.archiving import bring_back, note_archived, use_archive
from context_node.contexts.changes import rowid
from context_node.contexts.checks import check_active, check_drafts, check_guards, check_whole
from context_node.contexts.cluster import AdvanceEpoch, MarkNode, RaiseLevel, RegisterNode, RegisterNode1, SetReplication
from context_node.contexts.commands import (
    AppendMessages,
    Command,
    Compare,
    CopyPolicy,
    DeletePolicyCommand,
    Draft,
    NoteArchived,
    PatchMetadataCommand,
    PinMessage,
    PolicyRecord,
    Purge,
    PurgeEverywhere,
    PutConfig,
    PutPolicyCommand,
    RebuildWindow,
    Recount,
    RestoreContext,
    RewriteWindow,
    Tombstone,
    UseArchive,
)
from context_node.contexts.compaction import NOTHING, Outcome, compact
from context_node.contexts.configuring import changed_config, first_config, merge_patch
from context_node.contexts.context import ACTIVE, TOMBSTONED, Context, IdRow
from context_node.contexts.floor_limits import NO_WINDOW, check_floor
from context_node.contexts.idempotency import NOTHING_FOUND, Found, known_ids
from context_node.contexts.items import (
    LIVE,
    SUMMARY,
    Info,
    Item,
    edited,
    info_encoder,
    live_item,
    recounted_summary,
    timestamp,
)
from context_node.contexts.policies import copy_policy, deleted_policy, numbered_policy
from context_node.contexts.refusals import MessageNotFound, Refusal, TooLarge
from context_node.contexts.replies import Appended, Done, Put, Refused, Reply, Rewritten
from context_node.contexts.restoring import restore
from context_node.contexts.shard_state import Event, ShardState, compaction_event, not_found

__all__ = ["NOTHING_FOUND", "Event", "Found", "Machine", "not_found", "refused"]


class Machine(ShardState):
    """Applies commands to a shard's state."""

    def apply(self, index: int, command: Command, found: Found = NOTHING_FOUND) -> tuple[Reply, Event | None]:
        """Apply the command of log entry `index`. Never raises for what a client can cause."""
        if command.at_ms > self.clock_ms:
            self.clock_ms = command.at_ms
        try:
            if type(command) is AppendMessages:
                return self._append(index, command, found)
            return self._apply_other(index, command, found)
        except Refusal as refusal:
            return refused(refusal), None

    def _apply_other(self, index: int, command: Command, found: Found) -> tuple[Reply, Event | None]:
        match command:
            case PutConfig():
                return self._put(index, command, found)
            case PatchMetadataCommand():
                return self._patch(command, found)
            case Tombstone():
                return self._tombstone(command)
            case Purge() | PurgeEverywhere():
                return self._purge(command)
            case UseArchive():
                return use_archive(self, command), None
            case NoteArchived():
                return note_archived(self, command), Event("erased", "") if command.erased else None
            case RewriteWindow():
                return self._rewrite(command, found)
            case RebuildWindow():
                return self._rebuild(command, found)
            case PinMessage():
                return self._pin(command)
            case RestoreContext():
                return restore(self, index, command)
            case CopyPolicy():
                return self._copy_policy(command.record), None
            case PutPolicyCommand():
                return self._put_policy(command), None
            case DeletePolicyCommand():
                return self._delete_policy(command), None
            case RegisterNode() | RegisterNode1() | MarkNode() | SetReplication() | RaiseLevel() | AdvanceEpoch():
                return self.cluster.apply(command), None
            case Compare():
                return Done(), None
        raise AssertionError(f"no rule for {type(command).__name__}")

    # --- appending ---------------------------------------------------------------------------------------------------

    def _append(self, index: int, command: AppendMessages, found: Found) -> tuple[Reply, Event | None]:
        context = self.contexts.get(command.context_id)
        check_drafts(command.drafts)
        if context is None:
            if command.create is None:
                raise not_found(command.context_id)
            check_guards(command, 0, 0)
            check_floor(NO_WINDOW, command)
            config = first_config(PutConfig(command.context_id, command.at_ms, command.rules, command.create), self.policies)
            context = self.create(index, command.context_id, config)
        else:
            check_whole(context)
            known = None
            if command.key is not None:
                known = self.known_key(context, command.key, command.rules, found)
            if known is None and (found.ids or context.fresh_ids):
                known = known_ids(context, command.drafts, found)
            if known is not None:
                return known, None
            check_active(context)
            check_guards(command, context.head.version, context.head.last_seq)
            check_floor(context.window, command)
        return self._join(context, command)

    def _join(self, context: Context, command: AppendMessages) -> tuple[Reply, Event | None]:
        head, window = context.head, context.window
        first_seq = head.last_seq + 1
        head.version += 1
        items_before = len(window.items)
        bodies: list[bytes] = []
        late: list[int] = []
        estimate = 0
        for draft in command.drafts:
            item = self._record_message(context, draft)
            bodies.append(item.body)
            estimate += item.tokens
            if item.is_plain:
                window.join_plain(item)
            else:
                late.extend(window.join(item))
        for call_seq in late:
            context.mark_rewritten(head.version, call_seq, call_seq)
        outcome = compact(window, self.plan(context, command.rules))
        is_rewritten = outcome.changed or bool(late)
        if is_rewritten:
            self.note_rewrite(context, outcome.forced)
        else:
            context.note_joined(items_before)
            if first_seq == 1:
                window.mark_stable(head.last_seq)
        reply = Appended(first_seq, head.last_seq, head.version, estimate, outcome.forced)
        self.touch(context)
        if command.key is not None:
            self.remember(context, command.key, command.rules, reply)
        is_over = window.tokens > head.config.token_budget
        return reply, Event("message", context.id, first_seq, bodies, is_rewritten, outcome.forced, is_over)

    def _record_message(self, context: Context, draft: Draft) -> Item:
        head = context.head
        head.last_seq = seq = head.last_seq + 1
        body = b'{"seq":%d,%b,"inserted_at":"%b"}' % (seq, draft.fields, self._now())
        info = Info(draft.role, draft.tokens, draft.marks, head.version)
        item = live_item(seq, body, info, draft.pinned)
        stored = info_encoder.encode(info)
        row = (rowid(context.ordinal, seq), body, stored)
        self.changes.messages.append(row)
        self.changes.pending_bytes += len(body) + len(stored)
        context.tail.append(row)
        if draft.id is not None:
            context.fresh_ids[draft.id] = IdRow(seq, head.version, draft.tokens, draft.digest)
        return item

    def _now(self) -> bytes:
        if self._stamp[0] != self.clock_ms:
            self._stamp = (self.clock_ms, timestamp(self.clock_ms).encode())
        return self._stamp[1]

    # --- configuration and life --------------------------------------------------------------------------------------

    def _put(self, index: int, command: PutConfig, found: Found) -> tuple[Reply, Event | None]:
        context = self.contexts.get(command.context_id)
        if context is None:
            config = first_config(command, self.policies)
            context = self.create(index, command.context_id, config)
            context.head.metadata = command.metadata or b"{}"
            self.touch(context)
            reply = Put(True, context.head.version, context.head.revision)
            self.remember(context, command.key, command.rules, reply)
            return reply, None
        check_whole(context)
        known = self.known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        head = context.head
        config = changed_config(head.config, command, self.policies)
        metadata = head.metadata if command.metadata is None else command.metadata
        is_same = config == head.config and metadata == head.metadata and head.status == ACTIVE and not command.recounts
        if not is_same:
            # Another budget, other ratios or another policy hold the window to something new; the rest leaves it alone.
            is_bound = msgspec.structs.replace(config, tokenizer=head.config.tokenizer) != head.config
            self.follow(context, head.config.policy.ref, config.policy.ref)
            head.config, head.metadata, head.status, head.tombstoned_at_ms = config, metadata, ACTIVE, None
            context.plan = None
            is_recounted = self._recount(context, command.recounts)
            event = self.settle(context, command.rules, is_changed=is_recounted, is_bound=is_recounted or is_bound)
        else:
            event = None
        reply = Put(False, head.version, head.revision)
        if command.key is not None:
            self.remember(context, command.key, command.rules, reply)
            self.changes.touch(context)
        return reply, event

    def _recount(self, context: Context, recounts: Sequence[Recount]) -> bool:
        """Put new costs in place of the window's. Returns whether any message costs another number of tokens now."""
        if not recounts:
            return False
        by_seq: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for recount in recounts:
            by_seq.setdefault((recount.kind, recount.seq), []).append(recount.counts)
        items = context.window.items
        new = [_recounted(item, by_seq.get((item.kind, item.seq), [])) for item in items]
        if [item.tokens for item in new] == [item.tokens for item in items]:
            return False
        context.window.replace_items(new)
        return True

    def _patch(self, command: PatchMetadataCommand, found: Found) -> tuple[Reply, Event | None]:
        context = self.existing(command)
        known = self.known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        check_active(context)
        head = context.head
        metadata = merge_patch(head.metadata, command.patch)
        if len(metadata) > command.rules.metadata_bytes_max:
            raise TooLarge(
                f"metadata would be {len(metadata)} bytes; at most {command.rules.metadata_bytes_max} are allowed.",
                field="metadata",
                bytes=len(metadata),
            )
        event = None
        if metadata != head.metadata:
            head.metadata = metadata
            event = self.settle(context, command.rules, is_changed=False, is_bound=False)
        reply = Put(False, head.version, head.revision)
        self.remember(context, command.key, command.rules, reply)
        if command.key is not None:
            self.changes.touch(context)
        return reply, event

    def _tombstone(self, command: Tombstone) -> tuple[Reply, Event | None]:
        context = self.existing(command)
        check_whole(context)
        if context.head.status == TOMBSTONED:
            return Done(), None
        context.head.status = TOMBSTONED
        context.head.tombstoned_at_ms = self.clock_ms
        self.touch(context)
        return Done(), Event("tombstoned", context.id)

    def _purge(self, command: Purge | PurgeEverywhere) -> tuple[Reply, Event | None]:
        context = self.existing(command)
        if type(command) is PurgeEverywhere:
            self.erasures[context.id, context.head.incarnation] = None
        self.follow(context, context.head.config.policy.ref, None)
        del self.contexts[context.id]
        self.changes.purge(context)
        return Done(), Event("purged", context.id)

    # --- the window by hand ------------------------------------------------------------------------------------------

    def _rewrite(self, command: RewriteWindow, found: Found) -> tuple[Reply, Event | None]:
        context = self.existing(command)
        known = self.known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        check_active(context)
        version = context.head.version + 1
        if command.covers is not None:
            items = rewriting.replaced_range(context, command.covers, command.replacement, command.if_version, version)
            covers = command.covers
        else:
            items = rewriting.replaced_whole(context, command.replacement, command.through_seq, command.if_version, version)
            covers = (1, context.head.last_seq if command.through_seq is None else command.through_seq)
        rewriting.check_result(context, items)
        context.window.replace_items(items)
        context.mark_rewritten(version, *covers)
        # The hand's choice stands until the next append, unless a newer policy acts: that it does at every command.
        outcome = NOTHING
        if self.follows_newer_policy(context):
            outcome = compact(context.window, self.plan(context, command.rules))
        return self._finish_rewrite(context, command, outcome)

    def _rebuild(self, command: RebuildWindow, found: Found) -> tuple[Reply, Event | None]:
        context = self.existing(command)
        known = self.known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        check_active(context)
        rewriting.check_version(context, command.if_version)
        plan = self.plan(context, command.rules)
        window = rewriting.rebuilt(context, command.messages, command.through_seq, lambda window: compact(window, plan).changed)
        context.window.replace_items(window.items)
        bring_back(self, context, command.messages)
        context.mark_rewritten(context.head.version + 1, 1, context.head.last_seq)
        return self._finish_rewrite(context, command, NOTHING)

    def _pin(self, command: PinMessage) -> tuple[Reply, Event | None]:
        context = self.existing(command)
        check_active(context)
        head = context.head
        if not 1 <= command.seq <= head.last_seq:
            raise MessageNotFound(
                f"There is no message {command.seq}; the newest is {head.last_seq}.", seq=command.seq, last_seq=head.last_seq
            )
        if command.pinned:
            items = pinning.pinned_items(context, command.seq, command.restored)
        else:
            items = pinning.unpinned_items(context, command.seq)
        if items is None:
            return Rewritten(head.version), None
        context.window.replace_items(items)
        context.mark_rewritten(head.version + 1, command.seq, command.seq)
        outcome = compact(context.window, self.plan(context, command.rules))
        bring_back(self, context, command.restored)
        return self._finish_rewrite(context, command, outcome)

    def _finish_rewrite(
        self, context: Context, command: RewriteWindow | RebuildWindow | PinMessage, outcome: Outcome
    ) -> tuple[Reply, Event | None]:
        context.head.version += 1
        self.note_rewrite(context, outcome.forced)
        self.touch(context)
        reply = Rewritten(context.head.version)
        if not isinstance(command, PinMessage):
            self.remember(context, command.key, command.rules, reply)
        return reply, compaction_event(context)

    # --- policies ----------------------------------------------------------------------------------------------------

    def _copy_policy(self, record: PolicyRecord) -> Reply:
        if copy_policy(self.policies, record):
            self.changes.policies.add(record.name)
        return Done()

    def _put_policy(self, command: PutPolicyCommand) -> Reply:
        present = self.policies.get(command.record.name)
        policy = numbered_policy(present, command.record, self.clock_ms)
        generation = policy.record.generation
        if policy is present:
            return Put(False, generation, generation)
        self.policies[policy.record.name] = policy
        self.changes.policies.add(policy.record.name)
        return Put(present is None or present.record.deleted, generation, generation)

    def _delete_policy(self, command: DeletePolicyCommand) -> Reply:
        self.policies[command.name] = deleted_policy(self.policies.get(command.name), command.name, self.clock_ms)
        self.changes.policies.add(command.name)
        return Done()


def _recounted(item: Item, counts: list[tuple[int, ...]]) -> Item:
    """The item with its new counts: those of its message, or of its turn among the summaries of its range."""
    if not counts or item.kind not in (LIVE, SUMMARY) or len(counts[0]) != len(item.marks):
        return item
    return edited(item, counts=counts[0]) if item.kind == LIVE else recounted_summary(item, counts.pop(0))


def refused(refusal: Refusal) -> Refused:
    """A refusal as a reply."""
    return Refused(refusal.code, refusal.message, dict(refusal.details))
