"""A state machine with the store that the runtime keeps behind it, in plain dictionaries.

It loads contexts before it applies, drains changes behind, and can forget or restart at any moment: what it answers must not
depend on when (W5).
"""

import json
from collections.abc import Iterable
from typing import Any

from context_node.contexts import lookback
from context_node.contexts.commands import (
    AppendMessages,
    Command,
    Defaults,
    KeyUse,
    PinMessage,
    PolicySpec,
    PutConfig,
    RebuildWindow,
    Restored,
    RewriteWindow,
    Rules,
    decode_command,
    encode_command,
)
from context_node.contexts.context import Context, IdRow, KeyRow, read_context
from context_node.contexts.fitting import fit
from context_node.contexts.machine import Event, Found, Machine
from context_node.contexts.policies import StoredPolicy, policy_decoder, policy_encoder, policy_of
from context_node.contexts.render import render_window
from context_node.contexts.replies import Reply
from support.window_messages import RULES, Message, drafts_of

SEQ_MASK = (1 << 32) - 1


class StoredShard:
    """One shard. `messages`, `records` and the rest are what the database holds after the last `flush`."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.index = 0
        self.at_ms = 1_700_000_000_000
        self.messages: dict[int, tuple[bytes, bytes]] = {}
        self.records: dict[str, tuple[int, bytes]] = {}
        self.rewrites: dict[tuple[int, int], bytes] = {}
        self.keys: dict[tuple[int, str], KeyRow] = {}
        self.ids: dict[tuple[int, str], IdRow] = {}
        self.policies: dict[str, bytes] = {}

    def apply(self, command: Command) -> tuple[Reply, Event | None]:
        """Apply a command as it comes out of the log."""
        command = decode_command(encode_command(command))
        self.index += 1
        return self.machine.apply(self.index, command, self._found(command))

    def context(self, context_id: str) -> Context | None:
        context = self.machine.contexts.get(context_id)
        if context is None and context_id in self.records:
            ordinal, record = self.records[context_id]
            if ordinal in self.machine.changes.purged:
                return None
            context = read_context(context_id, ordinal, record, lambda ranges: self.rows(ordinal, ranges))
            self.machine.contexts[context_id] = context
        return context

    def rows(self, ordinal: int, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, bytes, bytes]]:
        """Stored messages by ranges of seq."""
        return [
            (seq, *self.messages[ordinal << 32 | seq])
            for first, last in ranges
            for seq in range(first, last + 1)
            if ordinal << 32 | seq in self.messages
        ]

    def history_rows(self, context: Context, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        """Messages as a leader reads them for a command, wherever they are."""
        return self.rows(context.ordinal, [(first, last)])

    def _found(self, command: Any) -> Found:
        for mark in getattr(command, "archived", ()):
            self.context(mark.context_id)
        context = self.context(command.context_id) if hasattr(command, "context_id") else None
        if context is None:
            return Found()
        use: KeyUse | None = getattr(command, "key", None)
        names = [draft.id for draft in getattr(command, "drafts", ())]
        ids = {name: self.ids[context.ordinal, name] for name in names if (context.ordinal, name) in self.ids}
        return Found(self.keys.get((context.ordinal, use.key)) if use is not None else None, ids)

    def flush(self) -> None:
        """Store what was applied."""
        changes = self.machine.changes
        for ordinal in changes.purged:
            self._erase(ordinal)
        for ordinal, gone in changes.trimmed.items():
            for first, last in gone:
                for seq in range(first, last + 1):
                    self.messages.pop(ordinal << 32 | seq, None)
        for key, body, info in changes.messages:
            assert self.messages.get(key, (body, info)) == (body, info), "a message was written twice, and differs (H1)"
            self.messages[key] = (body, info)
        for ordinal, version, record in changes.rewrites:
            self.rewrites[ordinal, version] = record
        for context in changes.contexts.values():
            self.records[context.id] = (context.ordinal, context.record())
            self.ids.update({(context.ordinal, name): row for name, row in context.fresh_ids.items()})
            self.keys.update({(context.ordinal, name): row for name, row in context.fresh_keys.items()})
            context.fresh_ids.clear()
            context.fresh_keys.clear()
            context.tail.clear()
        for ordinal, (number, at_ms) in changes.keys_below.items():
            old = [key for key, row in self.keys.items() if key[0] == ordinal and (row.number < number or row.at_ms < at_ms)]
            for each in old:
                del self.keys[each]
        for name in changes.policies:
            policy = self.machine.policies[name]
            self.policies[name] = policy_encoder.encode(StoredPolicy(policy.record, policy.users))
        self.machine.changes = type(changes)()

    def _erase(self, ordinal: int) -> None:
        self.messages = {key: row for key, row in self.messages.items() if key >> 32 != ordinal}
        self.records = {name: row for name, row in self.records.items() if row[0] != ordinal}
        self.rewrites = {key: row for key, row in self.rewrites.items() if key[0] != ordinal}
        self.keys = {key: row for key, row in self.keys.items() if key[0] != ordinal}
        self.ids = {key: row for key, row in self.ids.items() if key[0] != ordinal}

    def forget(self) -> None:
        """Drop every context from memory, as a full cache does."""
        self.flush()
        self.machine.contexts.clear()

    def restart(self) -> None:
        """Begin anew from what is stored, as after a snapshot."""
        self.flush()
        old = self.machine
        self.machine = Machine(clock_ms=old.clock_ms, next_ordinal=old.next_ordinal)
        for name, data in self.policies.items():
            stored = policy_decoder.decode(data)
            self.machine.policies[name] = policy_of(stored.record, stored.users)

    def dump(self) -> dict[str, Any]:
        """All that is stored."""
        self.flush()
        names = ("messages", "records", "rewrites", "keys", "ids", "policies")
        return {name: dict(sorted(getattr(self, name).items())) for name in names}

    # --- asking, as a client would -----------------------------------------------------------------------------------

    def put(self, context_id: str = "c", *, strategy: str | None = None, config: bytes = b"{}", **more: Any) -> Reply:
        policy = PolicySpec(strategy, config) if strategy is not None else None
        return self.apply(PutConfig(context_id, self.at_ms, RULES, Defaults(), policy=policy, **more))[0]

    def append(self, *messages: Message, context_id: str = "c", rules: Rules = RULES, **more: Any) -> tuple[Reply, Event | None]:
        return self.apply(AppendMessages(context_id, self.at_ms, rules, drafts_of(messages), **more))

    def rewrite(self, *messages: Message, context_id: str = "c", **more: Any) -> Reply:
        return self.apply(RewriteWindow(context_id, self.at_ms, RULES, drafts_of(messages), **more))[0]

    def rebuild(self, context_id: str = "c", **more: Any) -> Reply:
        self.flush()
        context = self.context(context_id)
        last = context.head.last_seq if context is not None else 0
        rows = self.history_rows(context, 1, last) if context is not None else []
        command = RebuildWindow(context_id, self.at_ms, RULES, tuple(Restored(*row) for row in rows), last, **more)
        return self.apply(command)[0]

    def pin(self, seq: int, pinned: bool = True, context_id: str = "c") -> Reply:
        self.flush()
        context = self.context(context_id)
        restored: tuple[Restored, ...] = ()
        if pinned and context is not None:
            rows = [Restored(*row) for row in self.history_rows(context, 1, context.head.last_seq)]
            restored = tuple(lookback.unit_of(rows, seq))
        return self.apply(PinMessage(context_id, self.at_ms, RULES, seq, pinned, restored))[0]

    def window(self, context_id: str = "c", budget: int | None = None) -> dict[str, Any]:
        """The window as a reader gets it, parsed."""
        answer: dict[str, Any] = json.loads(self.window_bytes(context_id, budget))
        return answer

    def window_bytes(self, context_id: str = "c", budget: int | None = None) -> bytes:
        context = self.context(context_id)
        assert context is not None
        plan = self.machine.live_plan(context, RULES.window_items_max)
        window = context.window
        if budget is not None:
            plan = type(plan)(budget, plan.trigger_ratio, plan.target_ratio, plan.strategy, plan.items_max)
        if budget is not None or self.machine.follows_newer_policy(context):
            window = fit(window.items, plan)
        head = context.head
        return render_window(window, plan, version=head.version, last_seq=head.last_seq).body

    def seqs(self, context_id: str = "c", budget: int | None = None) -> list[int | None]:
        """The seqs in the window; None for summaries and markers."""
        return [message["seq"] for message in self.window(context_id, budget)["messages"]]
