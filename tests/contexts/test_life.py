"""Idempotency, guards, configuration, policies by name, tombstones and purges (SEMANTICS.md)."""

from typing import Any

import pytest

from context_node.contexts.commands import (
    AppendMessages,
    CopyPolicy,
    Defaults,
    DeletePolicyCommand,
    KeyUse,
    PatchMetadataCommand,
    PolicyRecord,
    PolicySpec,
    Purge,
    PutConfig,
    PutPolicyCommand,
    Recount,
    Rules,
    Tombstone,
)
from context_node.contexts.context import Head
from context_node.contexts.items import LIVE, SUMMARY
from context_node.contexts.machine import Machine
from context_node.contexts.replies import Appended, Done, Put, Refused, Reply
from support.stored_shard import StoredShard
from support.window_messages import RULES, Message, assistant, drafts_of, user


@pytest.fixture
def shard() -> StoredShard:
    return StoredShard()


def key(name: str, digest: int = 1) -> KeyUse:
    return KeyUse(name, b"%016d" % digest)


def refusal(reply: Reply, code: str) -> dict[str, Any]:
    assert isinstance(reply, Refused) and reply.code == code, reply
    return reply.details


def head(shard: StoredShard, context_id: str = "c") -> Head:
    context = shard.context(context_id)
    assert context is not None
    return context.head


class TestAppends:
    def test_h2_seqs_run_on_and_a_batch_counts_once(self, shard: StoredShard) -> None:
        shard.put()
        assert shard.append(user(), assistant(), batch=True)[0] == Appended(1, 2, 1, 20)
        assert shard.append(user())[0] == Appended(3, 3, 2, 10)

    def test_an_unknown_context_is_made_only_when_asked(self, shard: StoredShard) -> None:
        refusal(shard.append(user())[0], "context_not_found")
        assert shard.append(user(), create=Defaults(token_budget=77))[0] == Appended(1, 1, 1, 10)
        assert head(shard).config.token_budget == 77

    def test_guards_compare_strictly_and_tell_where_the_context_is(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user(), assistant())
        assert refusal(shard.append(user(), if_version=0)[0], "version_conflict") == {"version": 1, "last_seq": 2}
        refusal(shard.append(user(), if_seq=1)[0], "version_conflict")
        refusal(shard.append(user(), if_version=1, if_seq=3)[0], "version_conflict")
        assert shard.append(user(), if_version=1, if_seq=2)[0] == Appended(3, 3, 2, 10)
        refusal(shard.append(user(), context_id="new", create=Defaults(), if_seq=1)[0], "version_conflict")
        assert shard.context("new") is None

    def test_the_order_of_checks_is_existence_key_status_guards(self, shard: StoredShard) -> None:
        shard.put()
        first, _ = shard.append(user(), key=key("k"))
        shard.apply(Tombstone("c", shard.at_ms, RULES))
        assert shard.append(user(), key=key("k"), if_seq=99)[0] == first
        refusal(shard.append(user(), if_seq=99)[0], "context_tombstoned")
        refusal(shard.append(user(), context_id="none", key=key("k"))[0], "context_not_found")

    def test_an_empty_batch_is_refused(self, shard: StoredShard) -> None:
        shard.put()
        refusal(shard.append()[0], "unprocessable")


class TestIdempotency:
    @pytest.mark.parametrize("pause", ["", "forget", "restart"])
    def test_h4_a_key_answers_what_was_answered(self, shard: StoredShard, pause: str) -> None:
        shard.put()
        first, _ = shard.append(user(), key=key("k"))
        shard.append(assistant())
        if pause:
            getattr(shard, pause)()
        assert shard.append(user(), key=key("k")) == (first, None)
        assert head(shard).last_seq == 2
        assert refusal(shard.append(user(), key=key("k", 2))[0], "idempotency_conflict") == {"key": "k"}

    def test_h4_keys_expire_by_number_and_by_command_time(self, shard: StoredShard) -> None:
        rules = Rules(keys_max=2, keys_ttl_ms=1_000)
        shard.put()
        for name in "abc":
            shard.append(user(), key=key(name), rules=rules)
        assert shard.append(user(), key=key("b"), rules=rules)[0] == Appended(2, 2, 2, 10)
        assert shard.append(user(), key=key("a"), rules=rules)[0] == Appended(4, 4, 4, 10)
        shard.at_ms += 999
        assert shard.append(user(), key=key("a"), rules=rules)[0] == Appended(4, 4, 4, 10)
        shard.at_ms += 1
        assert shard.append(user(), key=key("a"), rules=rules)[0] == Appended(5, 5, 5, 10)

    def test_w5_a_forgotten_key_stays_forgotten_when_the_setting_grows(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user(), key=key("a"), rules=Rules(keys_max=1))
        shard.append(user(), key=key("b"), rules=Rules(keys_max=1))
        assert shard.append(user(), key=key("a"), rules=Rules(keys_max=100))[0] == Appended(3, 3, 3, 10)

    def test_h4_command_time_never_runs_backwards(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user())
        shard.at_ms -= 5_000
        shard.append(user())
        shard.flush()
        stamps = [body.split(b'"inserted_at":')[1] for body, _ in shard.messages.values()]
        assert stamps[0] == stamps[1]

    def test_h4_a_message_id_is_known_for_ever(self, shard: StoredShard) -> None:
        shard.put()
        first, _ = shard.append(user(id="m"))
        shard.at_ms += 10**10
        shard.restart()
        assert shard.append(user(id="m")) == (first, None)

    def test_an_id_with_other_content_is_a_conflict(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user(id="m"))
        other = Message("assistant", (("text", 6),), "m")
        assert refusal(shard.append(other)[0], "idempotency_conflict") == {"ids": ["m"]}

    def test_a_count_by_another_tokenizer_is_the_same_content(self, shard: StoredShard) -> None:
        shard.put()
        first, _ = shard.append(user(10, id="m"))
        assert shard.append(user(12, id="m"))[0] == first

    def test_a_batch_of_known_ids_answers_only_if_all_are_known_and_follow_each_other(self, shard: StoredShard) -> None:
        shard.put()
        first, _ = shard.append(user(id="a"), assistant(id="b"), batch=True)
        assert shard.append(user(id="a"), assistant(id="b"), batch=True)[0] == first
        refusal(shard.append(assistant(id="b"), user(id="a"), batch=True)[0], "idempotency_conflict")
        assert refusal(shard.append(user(id="a"), assistant(id="new"), batch=True)[0], "idempotency_conflict") == {"ids": ["a"]}
        refusal(shard.append(user(id="a"), assistant(), batch=True)[0], "idempotency_conflict")
        assert head(shard).last_seq == 2

    def test_an_id_twice_in_a_batch_is_refused(self, shard: StoredShard) -> None:
        shard.put()
        refusal(shard.append(user(id="a"), user(id="a"), batch=True)[0], "unprocessable")

    def test_keys_work_on_create_patch_and_compact_too(self, shard: StoredShard) -> None:
        created = shard.put(key=key("p"))
        assert created == Put(True, 0, 1) and shard.put(key=key("p")) == created
        shard.append(user())
        patch = PatchMetadataCommand("c", shard.at_ms, RULES, b'{"a":1}', key("q"))
        assert shard.apply(patch)[0] == shard.apply(patch)[0]
        first = shard.rewrite(user(), covers=(1, 1), key=key("r"))
        assert shard.rewrite(user(), covers=(1, 1), key=key("r")) == first
        refusal(shard.rewrite(user(), covers=(1, 1), key=key("p", 2)), "idempotency_conflict")

    def test_a_refused_request_leaves_its_key_unused(self, shard: StoredShard) -> None:
        shard.put()
        refusal(shard.append(user(), if_seq=3, key=key("k"))[0], "version_conflict")
        assert shard.append(user(), key=key("k", 2))[0] == Appended(1, 1, 1, 10)


class TestConfiguration:
    def test_what_a_put_leaves_out_keeps_its_value(self, shard: StoredShard) -> None:
        shard.put(token_budget=500, metadata=b'{"a":1}')
        assert shard.put(trigger_ratio=0.8) == Put(False, 0, 2)
        assert (head(shard).config.token_budget, head(shard).metadata) == (500, b'{"a":1}')

    def test_an_unchanged_put_changes_nothing(self, shard: StoredShard) -> None:
        shard.put(token_budget=500)
        shard.flush()
        assert shard.put(token_budget=500) == Put(False, 0, 1)
        assert not shard.machine.changes.contexts

    def test_version_grows_only_if_the_window_changed_and_revision_always(self, shard: StoredShard) -> None:
        shard.put(token_budget=1_000)
        for _ in range(8):
            shard.append(user())
        assert shard.put(token_budget=900) == Put(False, 8, 10)
        assert shard.put(token_budget=60) == Put(False, 9, 11)

    @pytest.mark.parametrize(("trigger", "target"), [(0.5, 0.5), (0.5, 0.6), (None, 0.7)])
    def test_a_target_not_below_its_trigger_is_refused(self, shard: StoredShard, trigger: float | None, target: float) -> None:
        assert refusal(shard.put(trigger_ratio=trigger, target_ratio=target), "unprocessable")["field"] == "target_ratio"
        assert shard.context("c") is None

    def test_a_trigger_below_the_stored_target_is_refused(self, shard: StoredShard) -> None:
        shard.put(target_ratio=0.6)
        refusal(shard.put(trigger_ratio=0.6), "unprocessable")
        assert head(shard).config.trigger_ratio == 0.7

    def test_metadata_merges_by_rfc_7396(self, shard: StoredShard) -> None:
        shard.put(metadata=b'{"a":{"b":1,"c":2},"d":3}')
        shard.apply(PatchMetadataCommand("c", shard.at_ms, RULES, b'{"a":{"b":null,"e":4},"d":null,"f":[null]}'))
        assert head(shard).metadata == b'{"a":{"c":2,"e":4},"f":[null]}'
        small = Rules(metadata_bytes_max=40)
        refusal(shard.apply(PatchMetadataCommand("c", shard.at_ms, small, b'{"g":"0123456789"}'))[0], "too_large")

    def test_a_recount_changes_the_window_and_not_the_history(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user(10), assistant(20))
        shard.rewrite(user(30), covers=(1, 1))
        shard.flush()
        stored = dict(shard.messages)
        recounts = (Recount(SUMMARY, 1, (5,)), Recount(LIVE, 2, (7,)))
        assert shard.put(recounts=recounts, tokenizer="cl100k_base") == Put(False, 3, 4)
        window = shard.window()
        assert [message["token_count"] for message in window["messages"]] == [9, 11]
        shard.restart()
        assert shard.window() == window and shard.messages == stored

    def test_a_recount_that_does_not_fit_its_message_is_ignored(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user(10))
        shard.put(recounts=(Recount(LIVE, 1, (5, 5)), Recount(LIVE, 9, (5,))))
        assert shard.window()["used_tokens"] == 10


class TestLife:
    def test_a_tombstoned_context_reads_but_takes_no_writes(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user())
        reply, event = shard.apply(Tombstone("c", shard.at_ms, RULES))
        assert reply == Done() and event is not None and event.kind == "tombstoned"
        assert shard.apply(Tombstone("c", shard.at_ms, RULES)) == (Done(), None)
        for attempt in (shard.append(user())[0], shard.rewrite(user()), shard.pin(1), shard.rebuild()):
            refusal(attempt, "context_tombstoned")
        refusal(shard.apply(PatchMetadataCommand("c", shard.at_ms, RULES, b"{}"))[0], "context_tombstoned")
        assert shard.seqs() == [1]

    def test_put_revives_even_if_nothing_else_changes(self, shard: StoredShard) -> None:
        shard.put()
        shard.apply(Tombstone("c", shard.at_ms, RULES))
        assert shard.put() == Put(False, 0, 3)
        assert shard.append(user())[0] == Appended(1, 1, 1, 10)

    def test_purge_needs_no_tombstone_and_frees_the_id(self, shard: StoredShard) -> None:
        shard.put()
        shard.append(user(id="m"), key=key("k"))
        reply, event = shard.apply(Purge("c", shard.at_ms, RULES))
        assert reply == Done() and event is not None and event.kind == "purged"
        refusal(shard.apply(Purge("c", shard.at_ms, RULES))[0], "context_not_found")
        old = 2
        shard.put()
        assert head(shard).incarnation > old
        assert shard.append(assistant(id="m"), key=key("k", 2))[0] == Appended(1, 1, 1, 10)
        shard.flush()
        assert len(shard.messages) == 1 and len(shard.ids) == 1 and len(shard.keys) == 1

    def test_unknown_contexts_are_not_found(self, shard: StoredShard) -> None:
        for reply in (shard.rewrite(user()), shard.pin(1), shard.apply(Tombstone("c", 1, RULES))[0]):
            refusal(reply, "context_not_found")


def record(name: str, generation: int = 1, **more: Any) -> PolicyRecord:
    fields: dict[str, Any] = {
        "strategy": "last_n",
        "config": b"{}",
        "token_budget": None,
        "trigger_ratio": None,
        "target_ratio": None,
        "tokenizer": None,
        "default": False,
        "created_at_ms": 10,
        "updated_at_ms": 10,
    }
    return PolicyRecord(name, generation, **{**fields, **more})


class TestPoliciesInAShard:
    def test_only_newer_generations_are_taken(self, shard: StoredShard) -> None:
        shard.apply(CopyPolicy(1, record("p", 2, config=b'{"limit":5}')))
        shard.apply(CopyPolicy(1, record("p", 1, config=b'{"limit":9}')))
        assert shard.machine.policies["p"].strategy.limit == 5

    def test_a_reference_to_an_unknown_or_deleted_policy_is_refused(self, shard: StoredShard) -> None:
        put = PutConfig("c", 1, RULES, Defaults(), policy=PolicySpec(ref="p"))
        refusal(shard.apply(put)[0], "policy_not_found")
        shard.apply(CopyPolicy(1, record("p", 1, deleted=True)))
        refusal(shard.apply(put)[0], "policy_deleted")

    def test_contexts_keep_a_deleted_policy(self, shard: StoredShard) -> None:
        shard.apply(CopyPolicy(1, record("p", 1, config=b'{"limit":3}')))
        shard.apply(PutConfig("c", 1, RULES, Defaults(), policy=PolicySpec(ref="p")))
        shard.apply(CopyPolicy(1, record("p", 2, config=b'{"limit":3}', deleted=True)))
        assert shard.apply(PutConfig("c", 1, RULES, Defaults(), policy=PolicySpec(ref="p")))[0] == Put(False, 0, 1)
        for _ in range(9):
            shard.append(user(5))
        assert len(shard.seqs()) <= 4
        assert shard.machine.policies["p"].users == 1
        shard.apply(Purge("c", 1, RULES))
        assert shard.machine.policies["p"].users == 0

    def test_a_new_generation_acts_at_the_next_command_and_shows_at_once(self, shard: StoredShard) -> None:
        shard.apply(CopyPolicy(1, record("p", 1)))
        shard.apply(PutConfig("c", 1, RULES, Defaults(), policy=PolicySpec(ref="p")))
        for _ in range(8):
            shard.append(user(5))
        shard.apply(CopyPolicy(1, record("p", 2, config=b'{"limit":3}')))
        context = shard.context("c")
        assert context is not None and len(context.window.items) == 8
        assert len(shard.seqs()) <= 4, "a read is fitted to the new generation"
        shard.apply(PatchMetadataCommand("c", 1, RULES, b'{"a":1}'))
        assert len(context.window.items) <= 4 and head(shard).version == 9

    def test_budget_ratios_and_tokenizer_come_from_the_nearest(self, shard: StoredShard) -> None:
        policy = record("p", token_budget=300, trigger_ratio=0.9, tokenizer="cl100k_base")
        shard.apply(CopyPolicy(1, policy))
        defaults = Defaults(token_budget=200, trigger_ratio=0.6, target_ratio=0.2)
        shard.apply(PutConfig("a", 1, RULES, defaults, policy=PolicySpec(ref="p")))
        config = head(shard, "a").config
        assert (config.token_budget, config.trigger_ratio, config.target_ratio, config.tokenizer) == (300, 0.9, None, "cl100k_base")
        shard.apply(PutConfig("b", 1, RULES, defaults, token_budget=100))
        config = head(shard, "b").config
        assert (config.token_budget, config.trigger_ratio, config.target_ratio) == (100, 0.6, 0.2)

    def test_a_policys_target_that_does_not_go_with_the_trigger_is_derived_anew(self, shard: StoredShard) -> None:
        shard.apply(CopyPolicy(1, record("p", target_ratio=0.8)))
        assert shard.apply(PutConfig("c", 1, RULES, Defaults(), policy=PolicySpec(ref="p")))[0] == Put(True, 0, 1)
        assert head(shard).config.target_ratio is None

    def test_the_policy_is_the_clusters_then_the_older_default_then_none(self, shard: StoredShard) -> None:
        shard.apply(CopyPolicy(1, record("new", default=True, created_at_ms=20)))
        shard.apply(CopyPolicy(1, record("old", default=True, created_at_ms=10)))
        shard.apply(CopyPolicy(1, record("named")))
        shard.apply(PutConfig("a", 1, RULES, Defaults(policy_ref="named")))
        shard.apply(PutConfig("b", 1, RULES, Defaults()))
        shard.apply(CopyPolicy(1, record("old", 2, default=True, deleted=True)))
        shard.apply(PutConfig("c", 1, RULES, Defaults(policy_ref="old")))
        shard.apply(CopyPolicy(1, record("new", 2)))
        shard.apply(PutConfig("d", 1, RULES, Defaults()))
        assert [head(shard, name).config.policy.ref for name in "abcd"] == ["named", "old", "new", None]


class TestPoliciesInTheSystemGroup:
    def test_each_change_is_a_generation_and_no_change_is_none(self) -> None:
        machine = Machine()
        assert machine.apply(1, PutPolicyCommand(100, record("p", 0)))[0] == Put(True, 1, 1)
        assert machine.apply(2, PutPolicyCommand(200, record("p", 7)))[0] == Put(False, 1, 1)
        assert machine.apply(3, PutPolicyCommand(300, record("p", 0, config=b'{"limit":2}')))[0] == Put(False, 2, 2)
        stored = machine.policies["p"].record
        assert (stored.created_at_ms, stored.updated_at_ms, stored.generation) == (100, 300, 2)

    def test_a_deleted_policy_is_created_anew_under_the_next_generation(self) -> None:
        machine = Machine()
        machine.apply(1, PutPolicyCommand(100, record("p")))
        assert machine.apply(2, DeletePolicyCommand(200, "p"))[0] == Done()
        refusal(machine.apply(3, DeletePolicyCommand(200, "p"))[0], "policy_not_found")
        assert machine.apply(4, PutPolicyCommand(400, record("p")))[0] == Put(True, 3, 3)
        assert machine.policies["p"].record.created_at_ms == 400

    def test_a_policy_that_cannot_be_read_acts_as_the_default(self, shard: StoredShard) -> None:
        shard.apply(CopyPolicy(1, record("p", strategy="from_the_future", config=b"not json")))
        shard.apply(PutConfig("c", 1, RULES, Defaults(token_budget=60), policy=PolicySpec(ref="p")))
        for _ in range(9):
            shard.append(user())
        assert not shard.window()["over_budget"]


def test_appending_does_not_depend_on_what_was_in_memory(shard: StoredShard) -> None:
    shard.put()
    shard.forget()
    assert shard.apply(AppendMessages("c", shard.at_ms, RULES, drafts_of([user()])))[0] == Appended(1, 1, 1, 10)
