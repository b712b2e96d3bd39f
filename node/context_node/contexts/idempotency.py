"""What a context remembers so that a retry never acts twice (H4): idempotency keys and message ids.

Knows SEMANTICS.md "Idempotency". Invariants: what a key or id is known for depends on the log alone: on the command time and
the numbers of keys, never on what the database has deleted already or not yet (W5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from context_node.contexts.commands import Draft, KeyUse, Rules
from context_node.contexts.context import Context, IdRow, KeyRow
from context_node.contexts.refusals import IdempotencyConflict
from context_node.contexts.replies import Appended, Reply


@dataclass(frozen=True, slots=True)
class Found:
    """What the database knows of the key and the message ids that a command carries."""

    key: KeyRow | None = None
    ids: Mapping[str, IdRow] = field(default_factory=dict)


NOTHING_FOUND = Found()


def known_key(context: Context, use: KeyUse, rules: Rules, found: Found, clock_ms: int) -> Reply | None:
    """What the key's first request was answered; None if the key is new or forgotten: older than the newest
    `rules.keys_max` of the context, or than `rules.keys_ttl_ms`. Raises `IdempotencyConflict`."""
    row = context.fresh_keys.get(use.key) or found.key
    if row is None:
        return None
    head = context.head
    if row.number < max(head.keys_from, head.key_number - rules.keys_max + 1):
        return None
    if row.at_ms < max(head.keys_since_ms, clock_ms - rules.keys_ttl_ms + 1):
        return None
    if row.digest != use.digest:
        raise IdempotencyConflict("This idempotency key was used before with another request; use a new key.", key=use.key)
    return row.reply


def remember(context: Context, use: KeyUse, rules: Rules, reply: Reply, clock_ms: int) -> None:
    """Keep the reply under the key, and forget those that are too old. What is forgotten stays so, also if a setting grows:
    one replica may have deleted it already, another not yet."""
    head = context.head
    head.key_number += 1
    head.keys_from = max(head.keys_from, head.key_number - rules.keys_max + 1)
    head.keys_since_ms = max(head.keys_since_ms, clock_ms - rules.keys_ttl_ms + 1)
    context.fresh_keys[use.key] = KeyRow(head.key_number, clock_ms, use.digest, reply)


def known_ids(context: Context, drafts: Sequence[Draft], found: Found) -> Reply | None:
    """What the first append of these message ids was answered; None if none of them is known. A mixture of known and new
    ids, other contents or another order is a conflict. Raises `IdempotencyConflict`."""
    rows = {
        draft.id: row
        for draft in drafts
        if draft.id is not None and (row := context.fresh_ids.get(draft.id) or found.ids.get(draft.id)) is not None
    }
    if not rows:
        return None
    first = next(iter(rows.values()))
    last = first
    is_same = True
    for place, draft in enumerate(drafts):
        row = rows.get(draft.id) if draft.id is not None else None
        if row is None or row.digest != draft.digest or row.seq != first.seq + place:
            is_same = False
            break
        last = row
    if not is_same:
        raise IdempotencyConflict(
            "Some message ids are known already with another content or in another order; nothing was appended.",
            ids=sorted(rows)[:100],
        )
    return Appended(first.seq, last.seq, last.version, sum(row.estimate for row in rows.values()))
