"""What a shard holds, as far as it is in memory, and the steps that its commands share.

Knows contexts, policies and what is yet to be stored. Knows no commands but those that every step needs: `machine` decides.
Invariants: whatever changes a context notes it in `changes`; the plan that a window is held to follows from the log alone.
"""

from collections.abc import Sequence

import msgspec

from context_node.contexts import idempotency
from context_node.contexts.changes import Changes
from context_node.contexts.cluster import ClusterState
from context_node.contexts.commands import ContextCommand, KeyUse, Rules
from context_node.contexts.compaction import NOTHING, Plan, compact
from context_node.contexts.context import ACTIVE, Config, Context, Head, rewrite_record
from context_node.contexts.idempotency import Found
from context_node.contexts.policies import Policy, strategy_for
from context_node.contexts.refusals import ContextNotFound
from context_node.contexts.replies import Reply
from context_node.contexts.window import Window


class Event(msgspec.Struct, frozen=True, gc=False):
    """What followers of a context are told. `kind` is `message`, `compaction`, `configured`, `tombstoned` or `purged`; or `erased`, without
    an id, when the archive has erased something. `bodies` are new messages from `first_seq` on; `compacted` tells that the window was
    rewritten in the same command, `forced` that only W1 did it, and `over_budget` that it came down to the floor and still does not fit
    (for the metrics, no compaction)."""

    kind: str
    context_id: str
    first_seq: int = 0
    bodies: Sequence[bytes] = ()
    compacted: bool = False
    forced: bool = False
    over_budget: bool = False


class ShardState:
    """The replicated state of one shard.

    `contexts` holds those that are loaded; a missing one does not exist (the runtime loads before it applies). `clock_ms` is the
    newest command time; `next_ordinal` numbers creations.
    """

    def __init__(self, *, clock_ms: int = 0, next_ordinal: int = 1) -> None:
        self.contexts: dict[str, Context] = {}
        self.policies: dict[str, Policy] = {}
        self.clock_ms = clock_ms
        self.next_ordinal = next_ordinal
        self.cluster = ClusterState()
        """Used in the system group only."""
        self.erasures: dict[tuple[str, int], None] = {}
        """Contexts, as (id, incarnation), that were purged here and that the archive may still hold; in the order of their purges."""
        self.archive_id = ""
        """Which archive the marks are of; empty before the first."""
        self.archive_epoch = 0
        """How many archives there have been. Marks of an earlier one count for nothing."""
        self.has_trimmed = False
        """Whether messages have left the hot store: then this archive has what no other has."""
        self.changes = Changes()
        self._stamp = (-1, b"")

    def known_key(self, context: Context, use: KeyUse | None, rules: Rules, found: Found) -> Reply | None:
        return None if use is None else idempotency.known_key(context, use, rules, found, self.clock_ms)

    def remember(self, context: Context, use: KeyUse | None, rules: Rules, reply: Reply) -> None:
        if use is None:
            return
        idempotency.remember(context, use, rules, reply, self.clock_ms)
        self.changes.keys_below[context.ordinal] = (context.head.keys_from, context.head.keys_since_ms)

    def follow(self, context: Context, old: str | None, new: str | None) -> None:
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
        if (
            plan is not None
            and plan.items_max == rules.window_items_max
            and (ref is None or self._generation(ref) == head.policy_generation)
        ):
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

    def create(self, index: int, context_id: str, config: Config) -> Context:
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
            archive_epoch=self.archive_epoch,
        )
        context = Context(context_id, self.next_ordinal, head, Window(), places=[])
        self.next_ordinal += 1
        self.contexts[context_id] = context
        self.follow(context, None, config.policy.ref)
        if config.policy.ref is not None:
            head.policy_generation = self._generation(config.policy.ref)
        return context

    def existing(self, command: ContextCommand) -> Context:
        context = self.contexts.get(command.context_id)
        if context is None:
            raise not_found(command.context_id)
        return context

    def settle(self, context: Context, rules: Rules, *, is_changed: bool, is_bound: bool) -> Event | None:
        """After a change of the context that is no rewrite: hold the window to its plan where that is new (`is_bound`, or a
        newer generation of its policy), and count it as a change. `is_changed`: the window changed already."""
        outcome = NOTHING
        if is_bound or self.follows_newer_policy(context):
            outcome = compact(context.window, self.plan(context, rules))
        event = None
        if outcome.changed or is_changed:
            context.head.version += 1
            self.note_rewrite(context, outcome.forced)
            event = compaction_event(context)
        self.touch(context)
        return event

    def note_rewrite(self, context: Context, forced: bool) -> None:
        """The window changed before its end: what was cached of it is void, and the new state is kept for `at_version`."""
        context.places = None
        context.window.mark_stable(context.head.last_seq)
        context.window.forced = forced
        self.changes.rewrites.append((context.ordinal, context.head.version, rewrite_record(context)))

    def touch(self, context: Context) -> None:
        context.head.revision += 1
        context.head.updated_at_ms = self.clock_ms
        context.rendered = None
        self.changes.touch(context)


def compaction_event(context: Context) -> Event:
    window = context.window
    is_over = window.tokens > context.head.config.token_budget
    return Event("compaction", context.id, compacted=True, forced=window.forced, over_budget=is_over)


def not_found(context_id: str) -> ContextNotFound:
    return ContextNotFound("There is no context of this id; create it with PUT, or append with ?create=true.", id=context_id)
