"""Contexts that come back from an archive: they are what they were, and go on as they would have."""

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from context_node.contexts.commands import (
    AppendMessages,
    Archived,
    Defaults,
    NoteArchived,
    PatchMetadataCommand,
    PinMessage,
    PolicySpec,
    Purge,
    PutConfig,
    RebuildWindow,
    RestoreContext,
    RestoredMessage,
    RewriteWindow,
    Tombstone,
)
from context_node.contexts.context import Head, read_record
from context_node.contexts.items import info_encoder
from context_node.contexts.machine import Machine
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.replies import Appended, Done, Refused, RestoredUpTo
from context_node.contexts.restore_checks import check_messages, parse_record
from context_node.contexts.restore_parts import Held
from support.random_commands import POLICIES, Step, logs, perform
from support.restored_shard import SOURCE, copy_policies, parts, restore
from support.stored_shard import StoredShard
from support.window_messages import RULES, Message, assistant, call, drafts_of, reasoning, result, system, user


def head_of(shard: StoredShard, context_id: str = "c") -> Head:
    context = shard.context(context_id)
    assert context is not None
    return context.head


OWN = ("incarnation", "archived_seq", "archived_revision", "trimmed_seq", "key_number", "keys_from", "keys_since_ms", "policy_generation")


def shown(shard: StoredShard, context_id: str) -> dict[str, Any]:
    """A context as far as a restore keeps it, its window byte for byte."""
    head = head_of(shard, context_id)
    shard.flush()
    context = shard.context(context_id)
    assert context is not None
    record = msgspec.structs.asdict(head)
    ids = {name: row for (ordinal, name), row in shard.ids.items() if ordinal == context.ordinal}
    messages = {key & 0xFFFFFFFF: row for key, row in shard.messages.items() if key >> 32 == context.ordinal}
    return {
        **{name: value for name, value in record.items() if name not in OWN},
        "follows_newer_policy": shard.machine.follows_newer_policy(context),
        "window": shard.window_bytes(context_id),
        "places": msgspec.msgpack.encode(context.window_places()),
        "rewritten": context.rewritten,
        "ids": ids,
        "messages": messages,
    }


def restored_copy(old: StoredShard, rng: Random | None = None, sizes: tuple[int, ...] = (3,)) -> StoredShard:
    new = StoredShard()
    new.at_ms = old.at_ms
    copy_policies(old, new)
    old.flush()
    for context_id in list(old.records):
        restore(new, parts(old, context_id, sizes), rng)
    return new


def without_key(step: Step) -> Step:
    return Step(step.name, step.context_id, {**step.arguments, **({"key": None} if "key" in step.arguments else {})})


@settings(deadline=None)
@given(logs(40), logs(12), st.integers(0, 2**32))
def test_a_restored_shard_is_what_it_was_and_goes_on_alike(before: list[Step], after: list[Step], seed: int) -> None:
    rng = Random(seed)
    old = StoredShard()
    for step in before:
        perform(old, step)
    old.flush()
    new = restored_copy(old, rng, (rng.randint(1, 9), rng.randint(1, 3)))
    for context_id in old.records:
        assert shown(new, context_id) == shown(old, context_id)
    for step in after:
        step = without_key(step)
        if step.name == "policy":
            continue
        # A purge frees ordinals and incarnations, which are each shard's own, and nothing else.
        assert perform(new, step) == perform(old, step), step
        if rng.random() < 0.2:
            rng.choice((new.flush, new.forget, new.restart))()
    old.flush()
    for context_id in old.records:
        assert shown(new, context_id) == shown(old, context_id)


@settings(deadline=None)
@given(logs(40), st.integers(0, 2**32))
def test_a_record_that_is_ahead_of_the_messages_is_cut_to_them(before: list[Step], seed: int) -> None:
    rng = Random(seed)
    old, new = StoredShard(), StoredShard()
    for step in before:
        perform(old, step)
    copy_policies(old, new)
    for context_id, (_, record) in old.records.items():
        head = read_record(record)[0]
        if not head.last_seq:
            continue
        last_seq = rng.randrange(head.last_seq)
        commands = parts(old, context_id, (rng.randint(1, 9),), last_seq)
        assert restore(new, commands, rng) == RestoredUpTo(last_seq, True)
        cut = head_of(new, context_id)
        assert (cut.last_seq, cut.version, cut.revision) == (last_seq, head.version + 1, head.revision + 1)
        window = new.window(context_id)
        assert all(message["seq"] is None or message["seq"] <= last_seq for message in window["messages"])
        pinned = [place for place in read_record(record)[1].places if place[0] == 1 and place[2] and place[1] <= last_seq]
        assert {place[1] for place in pinned} <= {message["seq"] for message in window["messages"]}
        assert window["used_tokens"] <= window["token_budget"] or window["over_budget_reason"]
        before_restart = shown(new, context_id)
        new.restart()
        assert shown(new, context_id) == before_restart


TALK = (
    system(),
    user(id="u1"),
    call("a"),
    result("a"),
    reasoning(),
    assistant(id="a1"),
    user(pinned=True),
    call("b"),
    user(),
    result("b"),
)


def talk(budget: int = 400) -> StoredShard:
    shard = StoredShard()
    shard.put(token_budget=budget, metadata=b'{"who":"me"}')
    for message in TALK:
        shard.append(message)
    shard.rewrite(assistant(12), covers=(2, 6))
    return shard


def test_message_ids_are_known_after_a_restore() -> None:
    old = talk()
    new = restored_copy(old)
    for shard in (old, new):
        reply, _ = shard.append(user(id="u1"))
        assert reply == Appended(2, 2, 2, 10)
        reply, _ = shard.append(assistant(id="u1"))
        assert isinstance(reply, Refused)
        assert reply.code == "idempotency_conflict"


def test_a_tombstone_comes_back_as_one_and_can_be_revived() -> None:
    old = talk()
    old.at_ms += 5
    old.apply(Tombstone("c", old.at_ms, RULES))
    new = restored_copy(old)
    assert head_of(new).tombstoned_at_ms == old.at_ms
    assert shown(new, "c") == shown(old, "c")
    reply, _ = new.append(user())
    assert isinstance(reply, Refused)
    assert reply.code == "context_tombstoned"
    new.put()
    assert isinstance(new.append(user())[0], Appended)


def test_while_it_is_restored_a_context_takes_nothing_else() -> None:
    commands = parts(talk(), "c", (4,))
    new = StoredShard()
    assert new.apply(commands[0])[0] == RestoredUpTo(4, False)
    before = new.dump()
    others = [
        AppendMessages("c", 1, RULES, drafts_of((user(),))),
        AppendMessages("c", 1, RULES, drafts_of((user(id="u1"),)), create=Defaults()),
        PutConfig("c", 1, RULES, Defaults(), token_budget=9),
        PatchMetadataCommand("c", 1, RULES, b"{}"),
        Tombstone("c", 1, RULES),
        RewriteWindow("c", 1, RULES, drafts_of((user(),))),
        RebuildWindow("c", 1, RULES, (), 4),
        PinMessage("c", 1, RULES, 2, True),
    ]
    for command in others:
        reply, event = new.apply(command)
        assert isinstance(reply, Refused), command
        assert (reply.code, event) == ("unavailable", None)
        assert new.dump() == before
    context = new.context("c")
    assert context is not None
    assert context.status == "restoring"
    assert json.loads(context.head.metadata) == {"restored_from": SOURCE}
    # A purge is the way out.
    assert new.apply(Purge("c", 1, RULES))[0] == Done()
    assert restore(new, commands) == RestoredUpTo(len(TALK), True)


def test_a_gap_another_source_and_another_context_are_refused_and_change_nothing() -> None:
    old = talk()
    commands = parts(old, "c", (4,))
    new = StoredShard()
    reply, _ = new.apply(commands[1])
    assert isinstance(reply, Refused)
    assert (reply.code, reply.details["last_seq"]) == ("version_conflict", 0)
    assert new.context("c") is None
    new.apply(commands[0])
    before = new.dump()
    for wrong in (commands[2], msgspec.structs.replace(commands[1], source="another")):
        reply, _ = new.apply(wrong)
        assert isinstance(reply, Refused)
        assert reply.code == "version_conflict"
        assert new.dump() == before
    restore(new, commands[1:])
    whole = new.dump()
    assert new.apply(commands[-1]) == (RestoredUpTo(len(TALK), True), None)
    assert new.dump() == whole
    new.append(user())
    reply, _ = new.apply(commands[-1])
    assert isinstance(reply, Refused)
    assert reply.code == "version_conflict"


def test_what_the_archive_confirms_meanwhile_stays_true() -> None:
    """The new cluster archives and trims while it is restored; the window stays whole."""
    old = talk()
    new = StoredShard()
    commands = parts(old, "c", (4,))
    new.apply(commands[0])
    new.apply(commands[1])
    new.flush()
    new.apply(NoteArchived(new.at_ms, (Archived("c", head_of(new).incarnation, 7, 0, 7),)))
    new.restart()
    restore(new, commands[2:])
    new.forget()
    assert (head_of(new).archived_seq, head_of(new).trimmed_seq, head_of(new).archived_revision) == (7, 7, 0)
    assert new.window_bytes() == old.window_bytes()


def test_a_policy_by_name_acts_as_it_would_have() -> None:
    """Its generations are numbered anew; a window that had yet to follow the newest one still has to."""
    old = StoredShard()
    perform(old, Step("policy", "c", {"named": "p", "policy": POLICIES[0], "generation": 4, "deleted": False}))
    for name in ("c", "d"):
        old.apply(PutConfig(name, old.at_ms, RULES, Defaults(token_budget=900), policy=PolicySpec(ref="p")))
        for _ in range(9):
            old.append(user(20), context_id=name)
    perform(old, Step("policy", "c", {"named": "p", "policy": POLICIES[1], "generation": 5, "deleted": False}))
    old.append(user(20), context_id="d")
    new = StoredShard()
    reply, _ = new.apply(parts(old, "c", (50,))[-1])
    assert isinstance(reply, Refused)
    copy_policies(old, new, 1)
    for name in ("c", "d"):
        restore(new, parts(old, name, (50,)))
        assert new.window_bytes(name) == old.window_bytes(name)
        assert new.machine.policies["p"].users == 1 + (name == "d")
    assert (head_of(new, "c").policy_generation, head_of(new, "d").policy_generation) == (0, 1)
    for name in ("c", "d"):
        assert new.append(user(20), context_id=name)[0] == old.append(user(20), context_id=name)[0]
        assert new.window_bytes(name) == old.window_bytes(name)


def test_a_message_that_is_damaged_is_refused_before_it_is_proposed() -> None:
    first = parts(talk(), "c", (4,))[0]
    check_messages(1, first.messages)
    good = first.messages[1]
    for damaged in (
        msgspec.structs.replace(good, body=b"{"),
        msgspec.structs.replace(good, body=good.body.replace(b'"user"', b'"tool"')),
        msgspec.structs.replace(good, body=good.body.replace(b'"seq":2', b'"seq":3')),
        msgspec.structs.replace(good, body=b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"," + good.body[1:]),
        msgspec.structs.replace(good, info=b""),
        msgspec.structs.replace(good, info=first.messages[2].info),
        msgspec.structs.replace(good, id=("other", 1, 1, b"")),
        msgspec.structs.replace(good, id=("u1", -1, 1, b"")),
    ):
        with pytest.raises(Unprocessable):
            check_messages(1, (first.messages[0], damaged))
    with pytest.raises(Unprocessable):
        check_messages(2, first.messages)


@given(st.integers(0, 2**32))
@example(0)
def test_s1_no_record_stops_a_shard(seed: int) -> None:
    """Records that are damaged somewhere are refused, or make a context that can be stored, read back and asked."""
    rng = Random(seed)
    old = talk()
    commands = parts(old, "c", (50,))
    end = commands[-1].end
    assert end is not None
    tree = msgspec.msgpack.decode(end.record)
    tree[1] = msgspec.msgpack.decode(msgspec.msgpack.encode(tree[1]))
    damage(rng, tree)
    new = StoredShard()
    new.apply(commands[0])
    before = new.dump()
    command = msgspec.structs.replace(commands[-1], end=msgspec.structs.replace(end, record=msgspec.msgpack.encode(tree)))
    reply, _ = new.apply(command)
    if isinstance(reply, Refused):
        assert new.dump() == before
        return
    new.forget()
    window = new.window_bytes()
    new.restart()
    assert new.window_bytes() == window
    new.append(user(), result("b"), call("a"))
    new.rebuild()
    new.restart()
    new.window()


def damage(rng: Random, tree: Any) -> None:
    """Put something else in one place, or take it away."""
    where: list[tuple[list[Any], int]] = []
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        for place, value in enumerate(one):
            where.append((one, place))
            if isinstance(value, list):
                waiting.append(value)
    found, place = rng.choice(where)
    other = (0, 1, 2, 3, -1, 7, 11, 2**40, 2**63, None, True, 0.5, float("nan"), "x", b"x", b"{}", [], [0, 1, 2], [[0, 1, 4]])
    if rng.random() < 0.1:
        del found[place]
    else:
        found[place] = rng.choice(other)


def test_bytes_that_are_no_record_are_refused() -> None:
    for data in (b"", b"\xc0", b"\x92\x90\x90", b"x" * 100):
        with pytest.raises(Unprocessable):
            parse_record(data)
    new = StoredShard()
    reply, _ = new.apply(RestoreContext("c", 1, RULES, SOURCE, 1, (RestoredMessage(b"x", b"x", None, True),)))
    assert isinstance(reply, Refused)
    assert new.context("c") is None
    assert Machine().contexts == {}


def test_the_messages_of_a_window_are_found_in_any_order() -> None:
    held = Held([(2, 3), (7, 7), (9, 12)])
    assert [seq for seq in range(15) if seq in held] == [2, 3, 7, 9, 10, 11, 12]
    assert [seq for seq in (12, 3, 1, 7, 8, 2) if seq in held] == [12, 3, 7, 2]
    assert 1 not in Held([])


def test_an_info_of_a_message_that_is_no_info_is_refused() -> None:
    message = parts(talk(), "c", (4,))[0].messages[0]
    assert message.info != info_encoder.encode(None)
    with pytest.raises(Unprocessable):
        check_messages(1, (msgspec.structs.replace(message, info=info_encoder.encode(None)),))


def test_an_empty_context_comes_back_too() -> None:
    old = StoredShard()
    old.put(token_budget=77)
    new = restored_copy(old)
    assert shown(new, "c") == shown(old, "c")
    assert isinstance(new.append(Message("user", (("text", 3),)))[0], Appended)
