"""What leaves the hot store for the archive: nothing unconfirmed, nothing that a window holds, and nobody sees a difference (H6)."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context_node.contexts.commands import Archived, NoteArchived
from context_node.contexts.context import Context
from context_node.contexts.items import LIVE
from support.random_commands import Step, logs, perform
from support.stored_shard import StoredShard
from support.window_messages import call, result, system, user


class TrimmedShard(StoredShard):
    """A shard that lost its old messages to an archive; the archive is another shard that keeps everything."""

    def __init__(self, archive: StoredShard) -> None:
        super().__init__()
        self.archive = archive

    def history_rows(self, context: Context, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        self.archive.flush()
        trimmed = min(context.head.trimmed_seq, last)
        cold = self.archive.rows(context.ordinal, [(first, trimmed)])
        return cold + self.rows(context.ordinal, [(max(first, trimmed + 1), last)])

    def hot(self, context_id: str = "c") -> list[int]:
        """The seqs of a context whose rows are stored."""
        self.flush()
        context = self.context(context_id)
        assert context is not None
        return [key & 0xFFFFFFFF for key in sorted(self.messages) if key >> 32 == context.ordinal]

    def trim(self, upto: int, archived: int | None = None, context_id: str = "c") -> None:
        context = self.context(context_id)
        assert context is not None
        seq = upto if archived is None else archived
        self.apply(NoteArchived(self.at_ms, (Archived(context_id, context.head.incarnation, seq, 0, upto),)))


def pair() -> tuple[StoredShard, TrimmedShard]:
    whole = StoredShard()
    return whole, TrimmedShard(whole)


def each(shards: Sequence[StoredShard], name: str, *arguments: object, **named: object) -> object:
    """Do the same with all; they must answer the same."""
    answers = [getattr(shard, name)(*arguments, **named) for shard in shards]
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


@pytest.mark.parametrize(("archived", "asked", "trimmed"), [(5, 3, 3), (5, 5, 5), (3, 5, 3), (0, 5, 0), (5, 0, 0), (9, 9, 0)])
def test_h6_a_trim_never_passes_what_is_confirmed(archived: int, asked: int, trimmed: int) -> None:
    shards = pair()
    each(shards, "put", strategy="last_n", config=b'{"limit":1}')
    each(shards, "append", *(user() for _ in range(6)))
    shard = shards[1]
    shard.trim(asked, archived)
    context = shard.context("c")
    assert context is not None
    assert context.head.trimmed_seq == trimmed
    assert shard.hot() == [seq for seq in range(1, 7) if seq > trimmed or seq in shard.seqs()]
    assert 2 not in shard.seqs()


def test_a_trim_is_no_change_that_a_client_sees() -> None:
    shards = pair()
    each(shards, "put", strategy="last_n", config=b'{"limit":2}')
    each(shards, "append", *(user() for _ in range(6)))
    context = shards[1].context("c")
    assert context is not None
    before = context.head.version, context.head.revision, context.head.updated_at_ms
    shards[1].trim(4)
    assert (context.head.version, context.head.revision, context.head.updated_at_ms) == before


def test_what_the_window_holds_stays_and_goes_with_a_later_trim() -> None:
    shards = pair()
    each(shards, "put", strategy="last_n", config=b'{"limit":2}')
    each(shards, "append", system(), *(user() for _ in range(5)))
    shard = shards[1]
    shard.trim(6)
    assert shard.hot() == [1, 5, 6]
    shard.forget()
    assert shard.seqs() == [1, 5, 6]
    shards[0].apply(NoteArchived(shard.at_ms))
    each(shards, "append", user(), user())
    assert shard.seqs() == [1, 7, 8]
    assert shard.hot() == [1, 5, 6, 7, 8]
    shard.trim(7)
    assert shard.hot() == [1, 7, 8]


def test_a_pinned_message_that_was_cold_is_hot_again_with_its_unit() -> None:
    shards = pair()
    each(shards, "put", strategy="last_n", config=b'{"limit":1}')
    each(shards, "append", user(), call("a"), result("a"), user(), user(), user())
    shard = shards[1]
    shard.trim(4)
    assert shard.hot() == [5, 6]
    shards[0].apply(NoteArchived(shard.at_ms))
    each(shards, "pin", 3)
    assert shard.hot() == [2, 3, 5, 6]
    shard.forget()
    assert shard.window_bytes() == shards[0].window_bytes()
    each(shards, "pin", 3, False)
    shard.trim(5)
    assert shard.hot() == [seq for seq in shard.seqs() if seq is not None]


def test_a_window_is_rebuilt_from_cold_messages() -> None:
    shards = pair()
    each(shards, "put", strategy="last_n", config=b'{"limit":1}')
    each(shards, "append", *(user() for _ in range(8)))
    shard = shards[1]
    shard.trim(7)
    shards[0].apply(NoteArchived(shard.at_ms))
    each(shards, "put", strategy="last_n", config=b'{"limit":5}')
    each(shards, "rebuild")
    assert shard.seqs() == [4, 5, 6, 7, 8]
    assert shard.hot() == [4, 5, 6, 7, 8]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(moves=logs(60), seed=st.integers(0, 2**32 - 1))
def test_h6_nobody_can_tell_a_trimmed_shard_from_a_whole_one(moves: list[Step], seed: int) -> None:
    """The same random log for three shards: one keeps everything, two are trimmed at random, and one of these forgets and restarts."""
    whole = StoredShard()
    steady, restless = TrimmedShard(whole), TrimmedShard(whole)
    rng = Random(seed)
    for move in moves:
        if pause := rng.choice(("", "", "", "flush", "forget", "restart")):
            getattr(restless, pause)()
        if rng.random() < 0.3:
            _trim_somewhere(rng, whole, (steady, restless))
        answers = [perform(shard, move) for shard in (whole, steady, restless)]
        assert answers[0] == answers[1] == answers[2]
        for name in ("c", "d"):
            if whole.context(name) is not None:
                assert whole.window_bytes(name) == steady.window_bytes(name) == restless.window_bytes(name)
    for shard in (steady, restless):
        _check_rows(whole, shard)
    assert steady.dump() == restless.dump(), "what is stored must follow from the log alone (W5)"


def _trim_somewhere(rng: Random, whole: StoredShard, trimmed: Sequence[TrimmedShard]) -> None:
    context_id = rng.choice(("c", "d"))
    context = whole.context(context_id)
    last_seq = context.head.last_seq if context is not None else 0
    incarnation = context.head.incarnation if context is not None else 1
    mark = Archived(context_id, incarnation, rng.randint(0, last_seq), 0, rng.randint(0, last_seq + 2))
    for shard in trimmed:
        shard.apply(NoteArchived(shard.at_ms, (mark,)))
    whole.apply(NoteArchived(whole.at_ms))


def _check_rows(whole: StoredShard, shard: TrimmedShard) -> None:
    whole.flush()
    shard.flush()
    kept = 0
    for name in ("c", "d"):
        context = shard.context(name)
        if context is None:
            continue
        held = {item.seq for item in context.window.items if item.kind == LIVE}
        for seq in range(1, context.head.last_seq + 1):
            key = context.ordinal << 32 | seq
            if seq > context.head.trimmed_seq or seq in held:
                assert shard.messages[key] == whole.messages[key]
            kept += key in shard.messages
    assert kept == len(shard.messages), "rows of nobody"
