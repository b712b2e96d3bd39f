"""The state machine of a shard: commands in log order become replies, events and changes to store.

Knows SEMANTICS.md and nothing outside it: no clock, no I/O, no asyncio. The runtime loads the contexts that commands name (`contexts`) and the
keys and ids that they carry (`Found`) before it applies, and stores `changes` behind. Invariants: applying is total (a refusal is a reply)
and deterministic (the same log gives the same records, byte for byte); a command adds at most 1 to a context's version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from context_node.contexts import rewriting
from context_node.contexts.changes import Changes, rowid
from context_node.contexts.commands import (
    AppendMessages,
    Command,
    ContextCommand,
    CopyPolicy,
    DeletePolicyCommand,
    Draft,
    KeyUse,
    PatchMetadataCommand,
    PinMessage,
    PolicyRecord,
    Purge,
    PutConfig,
    PutPolicyCommand,
    RebuildWindow,
    RewriteWindow,
    Rules,
    Tombstone,
)
from context_node.contexts.compaction import Plan, compact
from context_node.contexts.configuring import changed_config, first_config, merge_patch
from context_node.contexts.context import ACTIVE, TOMBSTONED, Context, Head, IdRow, KeyRow
from context_node.contexts.items import LIVE, Info, Item, edited, info_encoder, timestamp
from context_node.contexts.policies import Policy, policy_of, strategy_for
from context_node.contexts.refusals import (
    ContextNotFound,
    ContextTombstoned,
    IdempotencyConflict,
    MessageNotFound,
    PolicyNotFound,
    Refusal,
    TooLarge,
    Unprocessable,
)
from context_node.contexts.replies import Appended, Done, Put, Refused, Reply, Rewritten
from context_node.contexts.window import Window


@dataclass(frozen=True, slots=True)
class Found:
    """What the database knows of the key and the message ids that a command carries."""

    key: KeyRow | None = None
    ids: Mapping[str, IdRow] = field(default_factory=dict)


NOTHING_FOUND = Found()


@dataclass(frozen=True, slots=True)
class Event:
    """What followers of a context are told. `kind` is `message`, `compaction`, `tombstoned` or `purged`; `bodies` are new messages from
    `first_seq` on; `compacted` tells that the window was rewritten in the same command, `forced` that only W1 did it."""

    kind: str
    context_id: str
    first_seq: int = 0
    bodies: Sequence[bytes] = ()
    compacted: bool = False
    forced: bool = False


class Machine:
    """The replicated state of one shard, as far as it is in memory.

    `contexts` holds those that are loaded; a missing one does not exist (the runtime loads before it applies). `clock_ms` is the newest
    command time; `next_ordinal` numbers creations.
    """

    def __init__(self, *, clock_ms: int = 0, next_ordinal: int = 1) -> None:
        self.contexts: dict[str, Context] = {}
        self.policies: dict[str, Policy] = {}
        self.clock_ms = clock_ms
        self.next_ordinal = next_ordinal
        self.changes = Changes()
        self._stamp = (-1, b"")

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
            case Purge():
                return self._purge(command)
            case RewriteWindow():
                return self._rewrite(command, found)
            case RebuildWindow():
                return self._rebuild(command, found)
            case PinMessage():
                return self._pin(command)
            case CopyPolicy():
                return self._copy_policy(command.record), None
            case PutPolicyCommand():
                return self._put_policy(command), None
            case DeletePolicyCommand():
                return self._delete_policy(command), None
        raise AssertionError(f"no rule for {type(command).__name__}")

    # --- appending ---------------------------------------------------------------------------------------------------

    def _append(self, index: int, command: AppendMessages, found: Found) -> tuple[Reply, Event | None]:
        context = self.contexts.get(command.context_id)
        _check_ids_differ(command.drafts)
        if context is None:
            if command.create is None:
                raise not_found(command.context_id)
            _check_guards(command, 0, 0)
            config = first_config(PutConfig(command.context_id, command.at_ms, command.rules, command.create), self.policies)
            context = self._create(index, command.context_id, config)
        else:
            known = self._known_key(context, command.key, command.rules, found) or self._known_ids(context, command.drafts, found)
            if known is not None:
                return known, None
            _check_active(context)
            _check_guards(command, context.head.version, context.head.last_seq)
        return self._join(context, command)

    def _join(self, context: Context, command: AppendMessages) -> tuple[Reply, Event | None]:
        head, window = context.head, context.window
        first_seq = head.last_seq + 1
        head.version += 1
        items_before = len(window.items)
        bodies: list[bytes] = []
        late: tuple[int, ...] = ()
        estimate = 0
        for draft in command.drafts:
            item = self._record_message(context, draft)
            bodies.append(item.body)
            estimate += item.tokens
            late += window.join(item)
        for call_seq in late:
            context.mark_rewritten(head.version, call_seq, call_seq)
        outcome = compact(window, self.plan(context, command.rules))
        is_rewritten = outcome.changed or bool(late)
        if is_rewritten:
            self._note_rewrite(context, outcome.forced)
        else:
            context.note_joined(items_before)
            if first_seq == 1:
                window.rewritten_seq = head.last_seq
        reply = Appended(first_seq, head.last_seq, head.version, estimate, outcome.forced)
        self._touch(context)
        self._remember(context, command.key, command.rules, reply)
        return reply, Event("message", context.id, first_seq, bodies, is_rewritten, outcome.forced)

    def _record_message(self, context: Context, draft: Draft) -> Item:
        head = context.head
        head.last_seq = seq = head.last_seq + 1
        body = b'{"seq":%d,%b,"inserted_at":"%b"}' % (seq, draft.fields, self._now())
        item = Item(LIVE, seq, draft.role, body, draft.tokens, draft.marks, pinned=draft.pinned)
        info = info_encoder.encode(Info(draft.role, draft.tokens, draft.marks, head.version))
        self.changes.messages.append((rowid(context.ordinal, seq), body, info))
        self.changes.pending_bytes += len(body) + len(info)
        context.tail.append(body)
        if draft.id is not None:
            context.fresh_ids[draft.id] = IdRow(seq, head.version, draft.tokens, draft.digest)
        return item

    def _now(self) -> bytes:
        if self._stamp[0] != self.clock_ms:
            self._stamp = (self.clock_ms, timestamp(self.clock_ms).encode())
        return self._stamp[1]

    # --- idempotency -------------------------------------------------------------------------------------------------

    def _known_key(self, context: Context, use: KeyUse | None, rules: Rules, found: Found) -> Reply | None:
        """What the key's first request was answered; None if the key is new or has expired. Expiry goes by command time and number."""
        if use is None:
            return None
        row = context.fresh_keys.get(use.key) or found.key
        if row is None or row.number <= context.head.key_number - rules.keys_max or row.at_ms <= self.clock_ms - rules.keys_ttl_ms:
            return None
        if row.digest != use.digest:
            raise IdempotencyConflict("This idempotency key was used before with another request; use a new key.", key=use.key)
        return row.reply

    def _known_ids(self, context: Context, drafts: Sequence[Draft], found: Found) -> Reply | None:
        """What the first append of these message ids was answered; None if none of them is known."""
        rows = {
            draft.id: row
            for draft in drafts
            if draft.id is not None and (row := context.fresh_ids.get(draft.id) or found.ids.get(draft.id)) is not None
        }
        if not rows:
            return None
        first = next(iter(rows.values()))
        answers = [rows.get(draft.id) if draft.id is not None else None for draft in drafts]
        is_same = all(
            row is not None and row.digest == draft.digest and row.seq == first.seq + place
            for place, (draft, row) in enumerate(zip(drafts, answers, strict=True))
        )
        if not is_same:
            raise IdempotencyConflict(
                "Some message ids are known already with another content or in another order; nothing was appended.", ids=sorted(rows)[:100]
            )
        last = rows[drafts[-1].id or ""]
        return Appended(first.seq, last.seq, last.version, sum(row.estimate for row in rows.values()))

    def _remember(self, context: Context, use: KeyUse | None, rules: Rules, reply: Reply) -> None:
        if use is None:
            return
        head = context.head
        head.key_number += 1
        context.fresh_keys[use.key] = KeyRow(head.key_number, self.clock_ms, use.digest, reply)
        self.changes.keys_below[context.ordinal] = (head.key_number - rules.keys_max + 1, self.clock_ms - rules.keys_ttl_ms + 1)

    # --- configuration and life --------------------------------------------------------------------------------------

    def _put(self, index: int, command: PutConfig, found: Found) -> tuple[Reply, Event | None]:
        context = self.contexts.get(command.context_id)
        if context is None:
            config = first_config(command, self.policies)
            context = self._create(index, command.context_id, config)
            context.head.metadata = command.metadata or b"{}"
            self._touch(context)
            reply = Put(True, context.head.version, context.head.revision)
            self._remember(context, command.key, command.rules, reply)
            return reply, None
        known = self._known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        head = context.head
        config = changed_config(head.config, command, self.policies)
        metadata = head.metadata if command.metadata is None else command.metadata
        is_same = config == head.config and metadata == head.metadata and head.status == ACTIVE and not command.recounts
        if not is_same:
            self._follow(context, head.config.policy.ref, config.policy.ref)
            head.config, head.metadata, head.status, head.tombstoned_at_ms = config, metadata, ACTIVE, None
            context.plan = None
            is_recounted = self._recount(context, command)
            event = self._settle(context, command.rules, is_changed=is_recounted)
        else:
            event = None
        reply = Put(False, head.version, head.revision)
        if command.key is not None:
            self._remember(context, command.key, command.rules, reply)
            self.changes.touch(context)
        return reply, event

    def _recount(self, context: Context, command: PutConfig) -> bool:
        counts = {(recount.kind, recount.seq): recount.counts for recount in command.recounts}
        items = context.window.items
        new = [
            edited(item, counts=counts[item.kind, item.seq])
            if item.kind == LIVE and len(counts.get((item.kind, item.seq), ())) == len(item.marks)
            else item
            for item in items
        ]
        if [item.tokens for item in new] == [item.tokens for item in items]:
            return False
        context.window.replace_items(new)
        return True

    def _patch(self, command: PatchMetadataCommand, found: Found) -> tuple[Reply, Event | None]:
        context = self._existing(command)
        known = self._known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        _check_active(context)
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
            event = self._settle(context, command.rules, is_changed=False)
        reply = Put(False, head.version, head.revision)
        self._remember(context, command.key, command.rules, reply)
        if command.key is not None:
            self.changes.touch(context)
        return reply, event

    def _tombstone(self, command: Tombstone) -> tuple[Reply, Event | None]:
        context = self._existing(command)
        if context.head.status == TOMBSTONED:
            return Done(), None
        context.head.status = TOMBSTONED
        context.head.tombstoned_at_ms = self.clock_ms
        self._touch(context)
        return Done(), Event("tombstoned", context.id)

    def _purge(self, command: Purge) -> tuple[Reply, Event | None]:
        context = self._existing(command)
        self._follow(context, context.head.config.policy.ref, None)
        del self.contexts[context.id]
        self.changes.purge(context)
        return Done(), Event("purged", context.id)

    # --- the window by hand ------------------------------------------------------------------------------------------

    def _rewrite(self, command: RewriteWindow, found: Found) -> tuple[Reply, Event | None]:
        context = self._existing(command)
        known = self._known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        _check_active(context)
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
        return self._finish_rewrite(context, command, forced=False)

    def _rebuild(self, command: RebuildWindow, found: Found) -> tuple[Reply, Event | None]:
        context = self._existing(command)
        known = self._known_key(context, command.key, command.rules, found)
        if known is not None:
            return known, None
        _check_active(context)
        rewriting.check_version(context, command.if_version)
        plan = self.plan(context, command.rules)
        window = rewriting.rebuilt(context, command.messages, command.through_seq, lambda window: compact(window, plan).changed)
        context.window.replace_items(window.items)
        context.mark_rewritten(context.head.version + 1, 1, context.head.last_seq)
        return self._finish_rewrite(context, command, forced=False)

    def _pin(self, command: PinMessage) -> tuple[Reply, Event | None]:
        context = self._existing(command)
        _check_active(context)
        head = context.head
        if not 1 <= command.seq <= head.last_seq:
            raise MessageNotFound(f"There is no message {command.seq}; the newest is {head.last_seq}.", seq=command.seq, last_seq=head.last_seq)
        if command.pinned:
            items = rewriting.pinned_items(context, command.seq, command.restored)
        else:
            items = rewriting.unpinned_items(context, command.seq)
        if items is None:
            return Rewritten(head.version), None
        context.window.replace_items(items)
        context.mark_rewritten(head.version + 1, command.seq, command.seq)
        outcome = compact(context.window, self.plan(context, command.rules))
        head.version += 1
        self._note_rewrite(context, outcome.forced)
        self._touch(context)
        return Rewritten(head.version), Event("compaction", context.id, compacted=True, forced=outcome.forced)

    def _finish_rewrite(self, context: Context, command: RewriteWindow | RebuildWindow, *, forced: bool) -> tuple[Reply, Event | None]:
        context.head.version += 1
        self._note_rewrite(context, forced)
        self._touch(context)
        reply = Rewritten(context.head.version)
        self._remember(context, command.key, command.rules, reply)
        return reply, Event("compaction", context.id, compacted=True, forced=forced)

    # --- policies ----------------------------------------------------------------------------------------------------

    def _copy_policy(self, record: PolicyRecord) -> Reply:
        present = self.policies.get(record.name)
        if present is not None and present.record.generation >= record.generation:
            return Done()
        users = present.users if present is not None else 0
        # A deleted policy without users is kept too: its generation keeps an older copy from coming back.
        self.policies[record.name] = policy_of(record, users)
        self.changes.policies.add(record.name)
        return Done()

    def _put_policy(self, command: PutPolicyCommand) -> Reply:
        """In the system group: number the generation. An unchanged PUT keeps it."""
        record = command.record
        present = self.policies.get(record.name)
        old = present.record if present is not None else None
        created = old.created_at_ms if old is not None and not old.deleted else self.clock_ms
        generation = old.generation if old is not None else 0
        new = msgspec.structs.replace(record, generation=generation, created_at_ms=created, updated_at_ms=old.updated_at_ms if old else 0)
        if new == old:
            return Put(False, generation, generation)
        new = msgspec.structs.replace(new, generation=generation + 1, updated_at_ms=self.clock_ms)
        self.policies[record.name] = policy_of(new)
        self.changes.policies.add(record.name)
        return Put(old is None or old.deleted, new.generation, new.generation)

    def _delete_policy(self, command: DeletePolicyCommand) -> Reply:
        present = self.policies.get(command.name)
        if present is None or present.record.deleted:
            raise PolicyNotFound(f"There is no policy {command.name!r}.", name=command.name)
        old = present.record
        record = msgspec.structs.replace(old, deleted=True, generation=old.generation + 1, updated_at_ms=self.clock_ms)
        self.policies[command.name] = policy_of(record)
        self.changes.policies.add(command.name)
        return Done()

    def _follow(self, context: Context, old: str | None, new: str | None) -> None:
        """Keep count of the contexts that follow each policy by name."""
        if old == new:
            return
        for name, step in ((old, -1), (new, 1)):
            if name is not None and name in self.policies:
                self.policies[name].users += step
                self.changes.policies.add(name)

    def plan(self, context: Context, rules: Rules) -> Plan:
        """What the context's window is held to now. Takes up a new generation of its policy."""
        head = context.head
        plan = context.plan
        ref = head.config.policy.ref
        if plan is not None and plan.items_max == rules.window_items_max and (ref is None or self._generation(ref) == head.policy_generation):
            return plan
        context.plan = plan = self.live_plan(context, rules.window_items_max)
        head.policy_generation = self._generation(ref) if ref is not None else 0
        return plan

    def live_plan(self, context: Context, items_max: int) -> Plan:
        """The plan that the next command will act by; looks only."""
        config = context.head.config
        strategy, _generation = strategy_for(config.policy, self.policies)
        return Plan(config.token_budget, config.trigger_ratio, context.target_ratio(), strategy, items_max)

    def follows_newer_policy(self, context: Context) -> bool:
        """Whether the named policy has a newer generation than the window was last compacted by."""
        ref = context.head.config.policy.ref
        return ref is not None and self._generation(ref) != context.head.policy_generation

    def _generation(self, name: str) -> int:
        policy = self.policies.get(name)
        return policy.record.generation if policy is not None else 0

    # --- shared ------------------------------------------------------------------------------------------------------

    def _create(self, index: int, context_id: str, config: Any) -> Context:
        head = Head(
            status=ACTIVE,
            incarnation=index,
            config=config,
            metadata=b"{}",
            version=0,
            revision=0,
            last_seq=0,
            archived_seq=0,
            created_at_ms=self.clock_ms,
            updated_at_ms=self.clock_ms,
            tombstoned_at_ms=None,
            used_tokens=0,
            key_number=0,
            policy_generation=0,
        )
        context = Context(context_id, self.next_ordinal, head, Window(), places=[])
        self.next_ordinal += 1
        self.contexts[context_id] = context
        self._follow(context, None, config.policy.ref)
        if config.policy.ref is not None:
            head.policy_generation = self._generation(config.policy.ref)
        return context

    def _existing(self, command: ContextCommand) -> Context:
        context = self.contexts.get(command.context_id)
        if context is None:
            raise not_found(command.context_id)
        return context

    def _settle(self, context: Context, rules: Rules, *, is_changed: bool) -> Event | None:
        """After a change of configuration: hold the window to its plan, and count it as a change."""
        outcome = compact(context.window, self.plan(context, rules))
        event = None
        if outcome.changed or is_changed:
            context.head.version += 1
            self._note_rewrite(context, outcome.forced)
            event = Event("compaction", context.id, compacted=True, forced=outcome.forced)
        self._touch(context)
        return event

    def _note_rewrite(self, context: Context, forced: bool) -> None:
        """The window changed before its end: what was cached of it is void, and the new state is kept for `at_version`."""
        context.places = None
        context.window.rewritten_seq = context.head.last_seq
        context.window.forced = forced
        self.changes.rewrites.append((context.ordinal, context.head.version, rewrite_record(context)))

    def _touch(self, context: Context) -> None:
        context.head.revision += 1
        context.head.updated_at_ms = self.clock_ms
        context.rendered = None
        self.changes.touch(context)


class RewriteRecord(msgspec.Struct, frozen=True, array_like=True):
    """A window after a rewrite, for `at_version`: its entries, where a summary that an earlier rewrite brought is named by that rewrite's
    version and its place in it."""

    last_seq: int
    places: list[Any]


_encode_record = msgspec.msgpack.Encoder().encode


def rewrite_record(context: Context) -> bytes:
    version = context.head.version
    places = [
        place if place[0] != 2 or place[7][0] == version else [2, place[1], place[2], None, None, 0, [], place[7]]
        for place in context.window_places()
    ]
    return _encode_record(RewriteRecord(context.head.last_seq, places))


def refused(refusal: Refusal) -> Refused:
    """A refusal as a reply."""
    return Refused(refusal.code, refusal.message, dict(refusal.details))


def not_found(context_id: str) -> ContextNotFound:
    return ContextNotFound("There is no context of this id; create it with PUT, or append with ?create=true.", id=context_id)


def _check_active(context: Context) -> None:
    if context.head.status != ACTIVE:
        raise ContextTombstoned("This context is deleted and takes no writes; PUT it to revive it.", id=context.id)


def _check_guards(command: AppendMessages, version: int, last_seq: int) -> None:
    for name, wanted, present in (("if_version", command.if_version, version), ("if_seq", command.if_seq, last_seq)):
        if wanted is not None and wanted != present:
            raise rewriting.version_conflict(f"{name} is {wanted}, but the context is at {present}; read it again and retry.", version, last_seq)


def _check_ids_differ(drafts: Sequence[Draft]) -> None:
    ids = [draft.id for draft in drafts if draft.id is not None]
    if len(ids) > 1 and len(set(ids)) != len(ids):
        raise Unprocessable("The batch names the same message id twice; give each message its own.", field="messages")
