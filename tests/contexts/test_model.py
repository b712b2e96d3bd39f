"""The state machine beside a slow model of the same rules, and the promises W1 to W4 and W6 after every step."""

import json
from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from context_node.contexts.commands import KeyUse, PatchMetadataCommand, Purge, Tombstone
from context_node.contexts.items import LIVE, MARKER, SUMMARY, Item
from context_node.contexts.parts import Mark
from context_node.contexts.replies import Appended, Done, Put, Reply, Rewritten
from context_node.contexts.replies import Refused as RefusedReply
from support import window_rules
from support.random_commands import random_messages
from support.reference import Entry, Model, Refused, read
from support.stored_shard import StoredShard
from support.window_messages import RULES, Message

KINDS = {LIVE: "live", SUMMARY: "summary", MARKER: "marker"}
seeds = st.integers(0, 2**32 - 1)


def _plain(rng: Random, *sizes: int) -> list[Message]:
    return [Message(rng.choice(("user", "assistant", "system")), (("text", rng.randint(0, 9)),)) for _ in range(rng.choice(sizes))]


def _seen(item: Item) -> tuple[Any, ...]:
    active: Sequence[tuple[int, Mark]] = list(item.active_marks())
    return KINDS[item.kind], item.seq, item.to_seq, item.role, [place for place, _ in active], item.tokens, item.pinned


def _expected(entry: Entry) -> tuple[Any, ...]:
    return entry.kind, entry.seq, entry.to_seq, entry.role, list(entry.parts), entry.tokens, entry.pinned


def _content(message: Message) -> object:
    """What a client said, without what the server counted."""
    return message.role, [part[:-1] for part in message.parts], message.pinned, message.token_count


class BesideTheModel(RuleBasedStateMachine):
    """Appends, configuration, pins and ranges on one context, each done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = StoredShard()
        self._begin()

    def _begin(self) -> None:
        """What is known of a context that is new."""
        self.model = Model()
        self.bodies: list[bytes] = []
        self.history: dict[int, tuple[bytes, bytes]] = {}
        self.answers: dict[tuple[str, str], tuple[object, Reply]] = {}
        self.metadata: dict[str, int] = {}
        self.revision = 1
        self.is_active = True
        self.has_policy = False

    @initialize()
    def create(self) -> None:
        assert self.shard.put() == Put(True, 0, 1)

    @rule(seed=seeds)
    def append(self, seed: int) -> None:
        self._append(random_messages(Random(seed), 1, 1, 1, 2, 3))

    @rule(seed=seeds)
    def append_more(self, seed: int) -> None:
        for offset in range(4):
            self._append(random_messages(Random(seed + offset), 1, 1, 2))

    @rule(seed=st.integers(0, 9), name=st.sampled_from(["k1", "k2", "m1", "m2"]))
    def append_again(self, seed: int, name: str) -> None:
        """H4: the same key or message id again, with the same content or another."""
        way = "key" if name.startswith("k") else "id"
        messages = random_messages(Random(seed), 1)
        use = None
        if way == "id":
            messages = [Message(each.role, each.parts, name, each.pinned, each.token_count) for each in messages]
        else:
            use = KeyUse(name, b"%016d" % seed)
        known = self.answers.get((way, name))
        if known is None:
            reply = self._append(messages, key=use)
            if isinstance(reply, Appended):
                self.answers[way, name] = (_content(messages[0]) if way == "id" else seed, reply)
            return
        reply, event = self.shard.append(*messages, key=use)
        assert event is None
        same_content = _content(messages[0]) == known[0] if way == "id" else known[0] == seed
        if same_content:
            answered = known[1]
            assert isinstance(answered, Appended)
            assert reply == (msgspec.structs.replace(answered, forced=False) if way == "id" else answered)
        else:
            assert isinstance(reply, RefusedReply) and reply.code == "idempotency_conflict"

    @rule(seed=seeds, off_version=st.sampled_from([None, 0, 0, 1]), off_seq=st.sampled_from([None, 0, 0, 1]))
    def append_guarded(self, seed: int, off_version: int | None, off_seq: int | None) -> None:
        guards = {
            "if_version": None if off_version is None else self.model.version + off_version,
            "if_seq": None if off_seq is None else self.model.last_seq + off_seq,
        }
        messages = random_messages(Random(seed), 1)
        if 1 in (off_version, off_seq) and self.is_active:
            reply, event = self.shard.append(*messages, **guards)
            assert isinstance(reply, RefusedReply) and reply.code == "version_conflict" and event is None
        else:
            self._append(messages, **guards)

    def _append(self, messages: list[Message], **more: Any) -> Reply:
        reply, event = self.shard.append(*messages, batch=len(messages) > 1, **more)
        if not self.is_active:
            assert isinstance(reply, RefusedReply) and reply.code == "context_tombstoned"
            return reply
        first = self.model.last_seq + 1
        self.model.append(messages)
        self.revision += 1
        estimate = sum(message.tokens for message in messages)
        assert event is not None and event.compacted == self.model.changed
        assert reply == Appended(first, self.model.last_seq, self.model.version, estimate, event.forced)
        self._check_growth()
        return reply

    @rule(value=st.sampled_from([{"a": 1}, {"a": None, "b": 2}, {"b": None}]))
    def patch(self, value: dict[str, int | None]) -> None:
        reply, _ = self.shard.apply(PatchMetadataCommand("c", self.shard.at_ms, RULES, json.dumps(value).encode()))
        if not self.is_active:
            assert isinstance(reply, RefusedReply) and reply.code == "context_tombstoned"
            return
        merged: dict[str, int | None] = {**self.metadata, **value}
        kept = {name: number for name, number in merged.items() if number is not None}
        self.revision += kept != self.metadata
        self.metadata = kept
        assert reply == Put(False, self.model.version, self.revision)

    @precondition(lambda self: self.model.version > 3)
    @rule()
    def tombstone(self) -> None:
        reply, event = self.shard.apply(Tombstone("c", self.shard.at_ms, RULES))
        assert reply == Done() and (event is not None) == self.is_active
        self.revision += self.is_active
        self.is_active = False

    @rule()
    def revive(self) -> None:
        self.revision += not self.is_active
        self.is_active = True
        assert self.shard.put() == Put(False, self.model.version, self.revision)

    @precondition(lambda self: self.model.version > 20)
    @rule()
    def purge(self) -> None:
        """The id is free again, and nothing of the old context shows."""
        assert self.shard.apply(Purge("c", self.shard.at_ms, RULES))[0] == Done()
        self._begin()
        self.create()

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
        before = (self.model.budget, self.model.trigger, self.model.target, self.model.limit, self.model.manual, self.is_active)
        self.model.configure(budget, Fraction(trigger), None if target is None else Fraction(target), limit, policy == "manual")
        after = (self.model.budget, self.model.trigger, self.model.target, self.model.limit, self.model.manual, True)
        reply = self.shard.put(
            strategy="manual" if policy == "manual" else "last_n",
            config=config,
            token_budget=budget,
            trigger_ratio=float(trigger),
            target_ratio=None if target is None else float(target),
        )
        # The first policy of a context is the built-in one, which no PUT can name.
        self.revision += before != after or not self.has_policy
        self.has_policy = self.is_active = True
        assert reply == Put(False, self.model.version, self.revision)
        self._check_growth()

    @rule(back=st.integers(0, 12), pinned=st.booleans())
    def pin(self, back: int, pinned: bool) -> None:
        live = [entry.seq for entry in self.model.window if entry.kind == "live"]
        if live and self.is_active:
            seq = live[-1 - back % len(live)]
            self.model.pin(seq, pinned)
            self.revision += self.model.changed
            assert self.shard.pin(seq, pinned) == Rewritten(self.model.version)
            self._check_growth()

    @rule(seed=seeds, back=st.integers(-1, 12), size=st.sampled_from([-1, 0, 1, 2, 4, 8]), lag=st.sampled_from([None, None, 0, 1, 3]))
    def replace(self, seed: int, back: int, size: int, lag: int | None) -> None:
        first = self.model.last_seq - back
        messages = _plain(Random(seed), 0, 1, 2)
        if_version = None if lag is None else max(0, self.model.version - lag)
        reply = self.shard.rewrite(*messages, covers=(first, first + size), if_version=if_version)
        try:
            self._check_active()
            self.model.replace(first, first + size, messages, if_version)
        except Refused as refusal:
            self._check_refusal(reply, str(refusal), first, first + size)
        else:
            self.revision += 1
            assert reply == Rewritten(self.model.version)
        self._check_growth()

    @rule(seed=seeds, back=st.sampled_from([None, None, -1, 0, 1, 3, 6]), lag=st.sampled_from([None, None, 0, 1]))
    def replace_all(self, seed: int, back: int | None, lag: int | None) -> None:
        through = None if back is None else self.model.last_seq - back
        messages = _plain(Random(seed), 0, 1, 2, 3)
        if_version = None if lag is None else max(0, self.model.version - lag)
        reply = self.shard.rewrite(*messages, through_seq=through, if_version=if_version)
        try:
            self._check_active()
            self.model.replace_all(through, messages, if_version)
        except Refused as refusal:
            assert isinstance(reply, RefusedReply) and reply.code == str(refusal), reply
        else:
            self.revision += 1
            assert reply == Rewritten(self.model.version)
        self._check_growth()

    def _check_active(self) -> None:
        self.model.changed = False
        if not self.is_active:
            raise Refused("context_tombstoned")

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
        head = context.head
        assert (head.version, head.last_seq, head.revision) == (model.version, model.last_seq, self.revision)
        assert json.loads(head.metadata) == self.metadata and (context.status == "active") == self.is_active
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
