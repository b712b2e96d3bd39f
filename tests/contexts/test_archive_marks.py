"""What the archive has confirmed, as replicated state: marks only go up, hold for one incarnation, and are no change that a client sees."""

import pytest

from context_node.contexts.commands import Archived, NoteArchived, Purge, PurgeEverywhere, UseArchive
from context_node.contexts.context import Head, archived_upto
from context_node.contexts.replies import Done, Refused
from support.stored_shard import StoredShard
from support.window_messages import RULES, user


@pytest.fixture
def shard() -> StoredShard:
    made = StoredShard()
    made.put()
    made.append(user(), user(), user())
    return made


def head(shard: StoredShard) -> Head:
    context = shard.context("c")
    assert context is not None
    return context.head


def note(shard: StoredShard, seq: int, incarnation: int | None = None) -> None:
    mark = Archived("c", head(shard).incarnation if incarnation is None else incarnation, seq)
    assert shard.apply(NoteArchived(shard.at_ms, (mark,))) == (Done(), None)


def test_a_mark_is_kept_and_no_client_sees_a_change(shard: StoredShard) -> None:
    before = head(shard).version, head(shard).revision, head(shard).updated_at_ms
    note(shard, 2)
    assert head(shard).archived_seq == 2
    assert (head(shard).version, head(shard).revision, head(shard).updated_at_ms) == before
    shard.flush()
    shard.machine.contexts.clear()
    assert head(shard).archived_seq == 2


@pytest.mark.parametrize("seq", [0, 1, 2, 4, 1_000_000])
def test_marks_never_go_back_nor_beyond_what_is_there(shard: StoredShard, seq: int) -> None:
    note(shard, 2)
    note(shard, seq)
    assert head(shard).archived_seq == 2


def test_a_mark_of_another_incarnation_is_old_news(shard: StoredShard) -> None:
    old = head(shard).incarnation
    shard.apply(Purge("c", shard.at_ms, RULES))
    shard.put()
    shard.append(user(), user(), user())
    note(shard, 3, old)
    assert head(shard).archived_seq == 0
    assert shard.apply(NoteArchived(shard.at_ms, (Archived("nobody", 1, 5),))) == (Done(), None)


def test_a_mark_of_a_context_that_is_not_in_memory_is_kept_too(shard: StoredShard) -> None:
    incarnation = head(shard).incarnation
    shard.flush()
    shard.machine.contexts.clear()
    shard.apply(NoteArchived(shard.at_ms, (Archived("c", incarnation, 3),)))
    assert head(shard).archived_seq == 3


def test_a_purge_is_remembered_until_the_archive_has_erased_it(shard: StoredShard) -> None:
    first = head(shard).incarnation
    assert shard.apply(PurgeEverywhere("c", shard.at_ms, RULES))[0] == Done()
    assert isinstance(shard.apply(PurgeEverywhere("c", shard.at_ms, RULES))[0], Refused)
    shard.put()
    second = head(shard).incarnation
    shard.apply(PurgeEverywhere("c", shard.at_ms, RULES))
    assert list(shard.machine.erasures) == [("c", first), ("c", second)]
    shard.apply(NoteArchived(shard.at_ms, erased=(("c", first), ("never", 1))))
    assert list(shard.machine.erasures) == [("c", second)]


def test_marks_of_another_archive_count_for_nothing_and_whoever_is_used_again_begins_anew(shard: StoredShard) -> None:
    def known() -> int:
        return archived_upto(head(shard), shard.machine.archive_epoch)

    assert shard.apply(UseArchive(shard.at_ms, "first")) == (Done(), None)
    note(shard, 2)
    assert known() == 2
    assert shard.apply(UseArchive(shard.at_ms, "first")) == (Done(), None)
    assert known() == 2
    assert shard.apply(UseArchive(shard.at_ms, "second")) == (Done(), None)
    assert known() == 0
    note(shard, 1)
    assert known() == 1
    shard.forget()
    assert known() == 1


def test_h6_no_other_archive_is_begun_once_messages_were_trimmed(shard: StoredShard) -> None:
    shard.apply(UseArchive(shard.at_ms, "first"))
    shard.put(strategy="last_n", config=b'{"limit":1}')
    mark = Archived("c", head(shard).incarnation, 3, 0, 1)
    shard.apply(NoteArchived(shard.at_ms, (mark,)))
    assert head(shard).trimmed_seq == 1
    refusal, _ = shard.apply(UseArchive(shard.at_ms, "second"))
    assert isinstance(refusal, Refused)
    assert "archive first only" in refusal.message
    assert shard.machine.archive_id == "first"
    assert shard.apply(UseArchive(shard.at_ms, "first")) == (Done(), None)
