"""The state machine beside a slow model of the same rules, and the promises W1 to W4 and W6 after every step."""

import json
from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from context_node.contexts.items import LIVE, MARKER, SUMMARY, Item
from context_node.contexts.parts import Mark
from context_node.contexts.replies import Appended, Reply
from context_node.contexts.replies import Refused as RefusedReply
from support import window_rules
from support.random_commands import random_messages
from support.reference import Entry, Model, Refused, read
from support.stored_shard import StoredShard
from support.window_messages import Message

KINDS = {LIVE: "live", SUMMARY: "summary", MARKER: "marker"}
seeds = st.integers(0, 2**32 - 1)


def _plain(rng: Random, *sizes: int) -> list[Message]:
    return [Message(rng.choice(("user", "assistant", "system")), (("text", rng.randint(0, 9)),)) for _ in range(rng.choice(sizes))]


def _seen(item: Item) -> tuple[Any, ...]:
    active: Sequence[tuple[int, Mark]] = list(item.active_marks())
    return KINDS[item.kind], item.seq, item.to_seq, item.role, [place for place, _ in active], item.tokens, item.pinned


def _expected(entry: Entry) -> tuple[Any, ...]:
    return entry.kind, entry.seq, entry.to_seq, entry.role, list(entry.parts), entry.tokens, entry.pinned


class BesideTheModel(RuleBasedStateMachine):
    """Appends, configuration, pins and ranges on one context, each done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = StoredShard()
        self.model = Model()
        self.bodies: list[bytes] = []
        self.history: dict[int, tuple[bytes, bytes]] = {}

    @initialize()
    def create(self) -> None:
        self.shard.put()

    @rule(seed=seeds)
    def append(self, seed: int) -> None:
        messages = random_messages(Random(seed), 1, 1, 1, 2, 3)
        first = self.model.last_seq + 1
        self.model.append(messages)
        reply, event = self.shard.append(*messages)
        estimate = sum(message.tokens for message in messages)
        assert reply == Appended(first, self.model.last_seq, self.model.version, estimate, event is not None and event.forced)
        assert event is not None and event.compacted == self.model.changed
        self._check_growth()

    @rule(seed=seeds)
    def append_more(self, seed: int) -> None:
        for offset in range(4):
            self.append(seed + offset)

    @rule(
        budget=st.sampled_from([20, 60, 90, 120, 200, 400]),
        ratios=st.sampled_from([("0.7", None), ("0.9", "0.3"), ("1.0", "0.9"), ("0.4", "0.1")]),
        policy=st.sampled_from(["all", "all", "limit 3", "limit 7", "manual"]),
    )
    def configure(self, budget: int, ratios: tuple[str, str | None], policy: str) -> None:
        trigger, target = ratios
        limit = int(policy.split()[1]) if policy.startswith("limit") else None
        config = b"{}" if limit is None else b'{"limit":%d}' % limit
        if target is None and self.model.target is not None:
            target = "0.3"  # a target that was given stays until another one is
        self.model.configure(budget, Fraction(trigger), None if target is None else Fraction(target), limit, policy == "manual")
        self.shard.put(
            strategy="manual" if policy == "manual" else "last_n",
            config=config,
            token_budget=budget,
            trigger_ratio=float(trigger),
            target_ratio=None if target is None else float(target),
        )
        self._check_growth()

    @rule(back=st.integers(0, 12), pinned=st.booleans())
    def pin(self, back: int, pinned: bool) -> None:
        live = [entry.seq for entry in self.model.window if entry.kind == "live"]
        if live:
            seq = live[-1 - back % len(live)]
            self.model.pin(seq, pinned)
            self.shard.pin(seq, pinned)
            self._check_growth()

    @rule(seed=seeds, back=st.integers(-1, 12), size=st.sampled_from([-1, 0, 1, 2, 4, 8]), lag=st.sampled_from([None, None, 0, 1, 3]))
    def replace(self, seed: int, back: int, size: int, lag: int | None) -> None:
        first = self.model.last_seq - back
        messages = _plain(Random(seed), 0, 1, 2)
        if_version = None if lag is None else max(0, self.model.version - lag)
        reply = self.shard.rewrite(*messages, covers=(first, first + size), if_version=if_version)
        try:
            self.model.replace(first, first + size, messages, if_version)
        except Refused as refusal:
            self._check_refusal(reply, str(refusal), first, first + size)
        else:
            assert not isinstance(reply, RefusedReply), reply
        self._check_growth()

    def _check_refusal(self, reply: Reply, code: str, first: int, last: int) -> None:
        assert isinstance(reply, RefusedReply) and reply.code == code, reply
        if "nearest" not in reply.details:
            return
        nearest = reply.details["nearest"]
        if nearest is not None:
            assert self.model.works(*nearest), f"{nearest} was said to work instead of [{first}, {last}]"
        elif 1 <= first <= last <= self.model.last_seq:
            inner = [(low, high) for low in range(first, last + 1) for high in range(low, last + 1)]
            assert not any(self.model.works(low, high) for low, high in inner), "a part of the range would have worked"

    def _check_growth(self) -> None:
        """W4: between rewrites a window changes only at its end."""
        context = self.shard.context("c")
        assert context is not None
        bodies = [item.body for item in context.window.items]
        if not self.model.changed:
            assert bodies[: len(self.bodies)] == self.bodies, "W4"
        self.bodies = bodies

    @invariant()
    def they_agree(self) -> None:
        context = self.shard.context("c")
        if context is None:
            return
        model, window = self.model, context.window
        assert [_seen(item) for item in window.items] == [_expected(entry) for entry in model.window]
        assert (context.head.version, context.head.last_seq) == (model.version, model.last_seq)
        assert (window.tokens, window.head_tokens) == (model.tokens, sum(entry.tokens for entry in model.head()))

    @invariant()
    def the_promises_hold(self) -> None:
        context = self.shard.context("c")
        if context is None:
            return
        window = self.shard.window()
        window_rules.check_window(window)
        model = self.model
        floor = model.floor()
        free = [entry for entry in model.window if entry not in floor]
        if window["over_budget"]:
            assert not any(entry.tokens for entry in free), "W1: over its budget although something could go"
        assert window["needs_compaction"] == (bool(free) and model.is_above())
        _, open_calls = read(model.window)
        waiting = {call.entry.seq for call in open_calls if call.marker is None}
        summaries = any(entry.kind == "summary" for entry in model.window)
        if not summaries:
            places = window_rules.unanswered(window["messages"])
            assert not places, f"W2: calls at {places} stand without a result or marker; waiting are {waiting}"

    @invariant()
    def history_is_never_touched(self) -> None:
        """H1, H2, W6: what was stored stays as it was, and seqs have no holes."""
        self.shard.flush()
        stored = self.shard.messages
        assert self.history.items() <= stored.items()
        new = [json.loads(stored[key][0])["seq"] for key in sorted(stored) if key not in self.history]
        assert new == list(range(len(self.history) + 1, self.model.last_seq + 1))
        self.history = dict(stored)


TestBesideTheModel = BesideTheModel.TestCase
TestBesideTheModel.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
