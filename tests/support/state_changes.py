"""Random flushes for state databases, and what they must leave behind, as plain dictionaries."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from context_node.runtime.state_rows import NOTHING_APPLIED, Applied, ContextRow, StateChanges, place
from context_node.runtime.state_store import StateStore


@dataclass
class StateModel:
    """The logical rows of a shard: contexts by ordinal, the other tables by (ordinal, key)."""

    applied: Applied = NOTHING_APPLIED
    next_ordinal: int = 1
    contexts: dict[int, ContextRow] = field(default_factory=dict)
    messages: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)
    message_ids: dict[tuple[int, str], tuple[int, int, int, bytes]] = field(default_factory=dict)
    keys: dict[tuple[int, str], tuple[int, int, bytes, bytes]] = field(default_factory=dict)
    rewrites: dict[tuple[int, int], bytes] = field(default_factory=dict)
    policies: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)
    ids_ever: set[str] = field(default_factory=set)

    def flush(self, changes: StateChanges) -> None:
        """What `StateStore.flush` promises."""
        self.applied = changes.applied
        for ordinal in changes.deleted_contexts:
            self.contexts.pop(ordinal, None)
            tables: list[dict[Any, Any]] = [self.messages, self.message_ids, self.keys, self.rewrites]
            for table in tables:
                for key in [key for key in table if key[0] == ordinal]:
                    del table[key]
        for row in changes.contexts:
            self.contexts[row[0]] = ContextRow(*row)
        for at, body, info in changes.messages:
            self.messages[at >> 32, at & 0xFFFFFFFF] = (body, info)
        for ordinal, message_id, *rest in changes.message_ids:
            self.ids_ever.add(message_id)
            self.message_ids[ordinal, message_id] = tuple(rest)  # type: ignore[assignment]
        for ordinal, key_text, *columns in changes.keys:
            self.keys[ordinal, key_text] = tuple(columns)  # type: ignore[assignment]
        for ordinal, number, at in changes.keys_below:
            for key in [key for key, value in self.keys.items() if key[0] == ordinal]:
                if self.keys[key][0] < number or self.keys[key][1] < at:
                    del self.keys[key]
        for ordinal, version, record in changes.rewrites:
            self.rewrites[ordinal, version] = record
        for name, generation, deleted, record in changes.policies:
            self.policies[name] = (generation, deleted, record)
        for name in changes.deleted_policies:
            self.policies.pop(name, None)

    def contents(self) -> dict[str, Any]:
        """Everything, comparable with `contents_of`."""
        return {
            "applied": self.applied,
            "contexts": sorted(self.contexts.values()),
            "messages": dict(self.messages),
            "message_ids": dict(self.message_ids),
            "keys": dict(self.keys),
            "rewrites": dict(self.rewrites),
            "policies": dict(self.policies),
        }

    def random_changes(self, rng: random.Random) -> StateChanges:
        """A flush that may follow."""
        before = self.applied
        clock_ms = before.clock_ms + rng.randint(0, 50)
        index = before.index + rng.randint(1, 9)
        changes = StateChanges(Applied(index, 1 + index // 50, b"members", clock_ms, rng.randbytes(8)))
        for _ in range(rng.randint(0, 2)):
            self._create(changes, rng, clock_ms)
        for ordinal in rng.sample(sorted(self.contexts), min(len(self.contexts), rng.randint(0, 3))):
            if rng.random() < 0.15:
                changes.deleted_contexts.append(ordinal)
            else:
                self._touch(changes, rng, ordinal, clock_ms)
        if rng.random() < 0.2:
            changes.policies.append((f"policy-{rng.randint(0, 3)}", index, 0, rng.randbytes(20)))
        if rng.random() < 0.1:
            changes.deleted_policies.append(f"policy-{rng.randint(0, 3)}")
        return changes

    def _create(self, changes: StateChanges, rng: random.Random, clock_ms: int) -> None:
        ordinal = self.next_ordinal
        self.next_ordinal += 1
        metadata = json.dumps({"user": f"u{rng.randint(0, 2)}", "n": rng.choice([1, 1.5, True, None, "1"])})
        row = (ordinal, f"context-{rng.getrandbits(40):010x}", 0, clock_ms, clock_ms, metadata, rng.randbytes(50))
        changes.contexts.append(row)
        self._append(changes, rng, ordinal, clock_ms)

    def _touch(self, changes: StateChanges, rng: random.Random, ordinal: int, clock_ms: int) -> None:
        row = self.contexts[ordinal]
        status = rng.choice((0, 0, 1))
        record = rng.randbytes(rng.choice((10, 500)))
        changes.contexts.append((ordinal, row.id, status, row.created_at, clock_ms, row.metadata, record))
        self._append(changes, rng, ordinal, clock_ms)
        if rng.random() < 0.3:
            changes.keys_below.append((ordinal, changes.applied.index - 40, clock_ms - 300))

    def _append(self, changes: StateChanges, rng: random.Random, ordinal: int, clock_ms: int) -> None:
        index = changes.applied.index
        last = max((seq for at, seq in self.messages if at == ordinal), default=0)
        for seq in range(last + 1, last + 1 + rng.randint(0, 6)):
            changes.messages.append((place(ordinal, seq), rng.randbytes(rng.choice((20, 400, 5000))), b"info"))
            changes.message_ids.append((ordinal, f"message-{rng.getrandbits(32):08x}", seq, seq, 5, rng.randbytes(8)))
        changes.keys.append((ordinal, f"key-{rng.randint(0, 9)}", index, clock_ms, b"digest", b"reply"))
        if rng.random() < 0.2:
            changes.rewrites.append((ordinal, index, rng.randbytes(30)))


def contents_of(store: StateStore, model: StateModel) -> dict[str, Any]:
    """What `store` answers, asked for all that `model` has ever named."""
    contexts = store.list_contexts(limit=1_000_000)
    ordinals = range(1, model.next_ordinal)
    alive = {row.ordinal for row in contexts}
    everything = [(0, 1 << 32)]
    keys = [f"key-{number}" for number in range(10)]
    found = {(o, key): store.key(o, key) for o in ordinals for key in keys if o in alive}
    return {
        "applied": store.applied(),
        "contexts": sorted(contexts),
        "messages": {(o, seq): (b, i) for o in ordinals if o in alive for seq, b, i in store.messages(o, everything)},
        "message_ids": {(o, row[0]): row[1:] for o in ordinals if o in alive for row in store.message_ids(o, model.ids_ever)},
        "keys": {at: tuple(row) for at, row in found.items() if row is not None},
        "rewrites": {(o, version): r for o in ordinals if o in alive for version, r in store.rewrites(o, 0, 1 << 60)},
        "policies": {row.name: tuple(row[1:]) for row in store.policies()},
    }
