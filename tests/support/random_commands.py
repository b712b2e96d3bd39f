"""Random logs for the state machine.

What a command means may depend on the state (which range, which message), so a log is made of `Step`s: a name and numbers that
`perform` turns into commands against a shard. Ids are few, so that they meet each other often. A step grows from one number:
hypothesis then finds out which steps a failure needs, and draws long logs cheaply.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from hypothesis import strategies as st

from context_node.contexts.commands import (
    CopyPolicy,
    Defaults,
    KeyUse,
    PatchMetadataCommand,
    PolicyRecord,
    PolicySpec,
    Purge,
    PutConfig,
    Recount,
    Rules,
    Tombstone,
)
from context_node.contexts.replies import Reply
from support.stored_shard import StoredShard
from support.window_messages import RULES, Message, Part

CALL_IDS = ("a", "b", "c")
SMALL_RULES = Rules(window_items_max=24, keys_max=3, keys_ttl_ms=50)


class Step(NamedTuple):
    """One move of a random log: what, on which context, with which arguments."""

    name: str
    context_id: str
    arguments: dict[str, Any]


def random_part(rng: Random, *kinds: str) -> Part:
    """A part of one of those kinds."""
    kind = rng.choice(kinds)
    if kind in ("call", "failed"):
        return (kind, rng.choice(CALL_IDS), rng.randint(0, 24))
    if kind == "result":
        return (kind, rng.choice(CALL_IDS), rng.choice((0, 5, 20, 160, 240)))
    if kind == "ui":
        state = rng.choice(("input-available", "output-available", "output-error"))
        return (kind, rng.choice(CALL_IDS), state, rng.choice((0, 5, 20, 160)))
    return (kind, rng.randint(0, 24))


_MESSAGES: dict[tuple[str, tuple[str, ...]], int] = {
    ("user", ("text", "opaque")): 5,
    ("assistant", ("text", "reasoning", "call")): 3,
    ("assistant", ("call",)): 4,
    ("tool", ("result",)): 5,
    ("tool", ("result", "failed")): 1,
    ("assistant", ("reasoning",)): 2,
    ("assistant", ("text",)): 3,
    ("assistant", ("ui", "reasoning", "text")): 3,
    ("assistant", ("ui",)): 2,
    ("user", ("result", "text")): 1,
    ("system", ("text",)): 1,
    ("assistant", ("text", "reasoning", "opaque", "call", "result", "failed", "ui")): 2,
    ("user", ("text", "result", "ui", "reasoning")): 1,
}


def random_message(rng: Random) -> Message:
    """A message such as apps send, or nearly."""
    role, kinds = rng.choices(list(_MESSAGES), list(_MESSAGES.values()))[0]
    parts = tuple(random_part(rng, *kinds) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    token_count = rng.randint(0, 40) if rng.random() < 0.05 else None
    return Message(role, parts, None, rng.random() < 0.05, token_count)


def random_messages(rng: Random, *sizes: int) -> list[Message]:
    return [random_message(rng) for _ in range(rng.choice(sizes))]


POLICIES = (
    ("last_n", b"{}"),
    ("last_n", b'{"limit":6}'),
    ("manual", b"{}"),
    ("skip_parts", b'{"kinds":["tool","reasoning"],"keep_last":2}'),
    ("skip_parts", b'{"kinds":["reasoning"],"limit":7}'),
    ("clear_tool_results", b'{"keep_last":1}'),
    ("clear_tool_results", b'{"keep_last":0,"exclude_tools":["tool_b"],"clear_at_least":50}'),
    (
        "pipeline",
        b'{"strategies":[{"strategy":"clear_tool_results","config":{"keep_last":1}},'
        b'{"strategy":"skip_parts","config":{"kinds":["reasoning","data-"]}},{"strategy":"last_n","config":{"limit":12}}]}',
    ),
)
RATIOS = ((None, None), (0.7, None), (0.9, 0.3), (1.0, 0.9), (0.4, 0.1))
KEYS = (None, None, None, "k1", "k2", "k3", "k4", "k5")


_ARGUMENTS: dict[str, tuple[int, Callable[[Random], dict[str, Any]]]] = {
    "append": (
        40,
        lambda rng: {
            "messages": random_messages(rng, 1, 1, 1, 2, 3),
            "guard": rng.choice((None,) * 8 + (0, 1)),
            "key": rng.choice(KEYS),
            "message_id": rng.choice((None,) * 24 + ("m1", "m2")),
            "late_ms": rng.choice((0, 0, 1, 30)),
        },
    ),
    "put": (
        3,
        lambda rng: {
            "budget": rng.choice((20, 60, 120, 250, 500, 900)),
            "ratios": rng.choice(RATIOS),
            "policy": rng.choice(POLICIES),
            "key": rng.choice(KEYS),
        },
    ),
    "put_ref": (2, lambda rng: {"policy": rng.choice("pq")}),
    "policy": (
        2,
        lambda rng: {
            "named": rng.choice("pq"),
            "policy": rng.choice(POLICIES),
            "generation": rng.randint(1, 6),
            "deleted": rng.random() < 0.3,
        },
    ),
    "patch": (1, lambda rng: {"value": rng.choice((b'{"a":1}', b'{"a":null,"b":{"c":2}}', b"{}")), "key": rng.choice(KEYS)}),
    "range": (
        6,
        lambda rng: {
            "low": rng.randint(-1, 8),
            "size": rng.choice((-1, 0, 0, 1, 1, 2, 3, 5, 8)),
            "messages": random_messages(rng, 0, 1, 1, 2),
            "version_lag": rng.choice((None, None, 0, 1, 5)),
        },
    ),
    "whole": (
        2,
        lambda rng: {
            "lag": rng.choice((None, 0, 1, 3)),
            "messages": random_messages(rng, 0, 1, 1, 2),
            "version_lag": rng.choice((None, None, 0, 1)),
        },
    ),
    "rebuild": (1, lambda rng: {"key": rng.choice(KEYS)}),
    "pin": (5, lambda rng: {"back": rng.randint(0, 20), "pinned": rng.random() < 0.6}),
    "recount": (1, lambda rng: {"cost": rng.randint(0, 20)}),
    "tombstone": (1, lambda _rng: {}),
    "revive": (2, lambda _rng: {}),
    "purge": (1, lambda rng: {"sure": rng.randint(0, 2)}),
}


def random_step(seed: int, only: Sequence[str] = tuple(_ARGUMENTS)) -> Step:
    """The step that grows from a number, of those that `only` names."""
    rng = Random(seed)
    name = rng.choices(only, [_ARGUMENTS[each][0] for each in only])[0]
    return Step(name, rng.choice("cccd"), _ARGUMENTS[name][1](rng))


def steps(only: Sequence[str] = tuple(_ARGUMENTS)) -> st.SearchStrategy[Step]:
    return st.integers(0, 2**32 - 1).map(lambda seed: random_step(seed, only))


def logs(size: int, only: Sequence[str] = tuple(_ARGUMENTS)) -> st.SearchStrategy[list[Step]]:
    """Logs that begin with two contexts, one of them with a strategy."""
    first = steps(("put",)).map(lambda step: [Step("put", "c", step.arguments), Step("revive", "d", {})])
    return st.tuples(first, st.lists(steps(only), min_size=size // 2, max_size=size)).map(lambda both: both[0] + both[1])


def _use(name: str | None, said: object) -> KeyUse | None:
    return None if name is None else KeyUse(name, b"%016d" % crc32(repr(said).encode()))


def perform(shard: StoredShard, move: Step) -> Reply:
    """Do one move. Everything about it follows from the move and the shard's state."""
    return _MOVES[move.name](shard, move.context_id, **move.arguments)


def _append(
    shard: StoredShard, name: str, messages: list[Message], guard: int | None, key: str | None, message_id: str | None, late_ms: int
) -> Reply:
    shard.at_ms += late_ms
    context = shard.context(name)
    named = [
        Message(each.role, each.parts, f"{message_id}{place}" if message_id else None, each.pinned, each.token_count)
        for place, each in enumerate(messages)
    ]
    if_version = context.head.version - guard if guard is not None and context is not None else None
    reply, _event = shard.append(
        *named,
        context_id=name,
        rules=SMALL_RULES,
        batch=len(named) > 1,
        if_version=if_version,
        key=_use(key, messages),
        create=Defaults(token_budget=120),
    )
    return reply


def _put(
    shard: StoredShard, name: str, budget: int, ratios: tuple[float | None, float | None], policy: tuple[str, bytes], key: str | None
) -> Reply:
    use = _use(key, (budget, ratios, policy))
    return shard.put(
        name, strategy=policy[0], config=policy[1], token_budget=budget, trigger_ratio=ratios[0], target_ratio=ratios[1], key=use
    )


def _put_ref(shard: StoredShard, context_id: str, policy: str) -> Reply:
    return shard.apply(PutConfig(context_id, shard.at_ms, RULES, Defaults(token_budget=120), policy=PolicySpec(ref=policy)))[0]


def _policy(shard: StoredShard, _context: str, named: str, policy: tuple[str, bytes], generation: int, deleted: bool) -> Reply:
    record = PolicyRecord(named, generation, policy[0], policy[1], 150, 0.8, None, None, named == "q", 5, 6, deleted)
    return shard.apply(CopyPolicy(shard.at_ms, record))[0]


def _patch(shard: StoredShard, name: str, value: bytes, key: str | None) -> Reply:
    return shard.apply(PatchMetadataCommand(name, shard.at_ms, RULES, value, _use(key, value)))[0]


def _range(shard: StoredShard, name: str, low: int, size: int, messages: list[Message], version_lag: int | None) -> Reply:
    context = shard.context(name)
    last = context.head.last_seq if context is not None else 0
    first = max(0, last - 10) + low
    if_version = context.head.version - version_lag if version_lag is not None and context is not None else None
    return shard.rewrite(*messages, context_id=name, covers=(first, first + size), if_version=if_version)


def _whole(shard: StoredShard, name: str, lag: int | None, messages: list[Message], version_lag: int | None) -> Reply:
    context = shard.context(name)
    last = context.head.last_seq if context is not None else 0
    if_version = context.head.version - version_lag if version_lag is not None and context is not None else None
    return shard.rewrite(*messages, context_id=name, through_seq=None if lag is None else last - lag, if_version=if_version)


def _rebuild(shard: StoredShard, name: str, key: str | None) -> Reply:
    return shard.rebuild(name, key=_use(key, "rebuild"))


def _pin(shard: StoredShard, name: str, back: int, pinned: bool) -> Reply:
    context = shard.context(name)
    last = context.head.last_seq if context is not None else 0
    return shard.pin(last - back, pinned, name)


def _recount(shard: StoredShard, name: str, cost: int) -> Reply:
    context = shard.context(name)
    items = context.window.items if context is not None else []
    recounts = tuple(Recount(item.kind, item.seq, tuple(cost + place for place in range(len(item.marks)))) for item in items)
    return shard.put(name, recounts=recounts)


def _tombstone(shard: StoredShard, name: str) -> Reply:
    return shard.apply(Tombstone(name, shard.at_ms, RULES))[0]


def _revive(shard: StoredShard, name: str) -> Reply:
    return shard.put(name)


def _purge(shard: StoredShard, name: str, sure: int) -> Reply:
    return shard.apply(Purge(name, shard.at_ms, RULES))[0] if sure == 0 else shard.put(name)


_MOVES: dict[str, Callable[..., Reply]] = {
    "append": _append,
    "put": _put,
    "put_ref": _put_ref,
    "policy": _policy,
    "patch": _patch,
    "range": _range,
    "whole": _whole,
    "rebuild": _rebuild,
    "pin": _pin,
    "recount": _recount,
    "tombstone": _tombstone,
    "revive": _revive,
    "purge": _purge,
}
