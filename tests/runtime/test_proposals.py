"""P4, P13: whoever waits for an entry of the log is answered, and with a reply only by the entry of the same index and term."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from context_node.contexts.commands import Rules, Tombstone
from context_node.contexts.refusals import OutcomeUnknown
from context_node.contexts.replies import Reply
from context_node.runtime.proposals import OUTLIVE_ELECTIONS, Proposal, Proposals

ELECTION = 10
OUTLIVE = OUTLIVE_ELECTIONS * ELECTION
DONE = cast(Reply, "a reply")


def run(check: Callable[[], Any]) -> None:
    async def checking() -> None:
        check()

    asyncio.run(checking())


def proposal(term: int, size: int = 10) -> Proposal:
    command = Tombstone("c", 1, Rules())
    return Proposal(term, command, size, asyncio.get_running_loop().create_future())


def is_unknown(one: Proposal) -> bool:
    return one.reply.done() and isinstance(one.reply.exception(), OutcomeUnknown)


def test_p4_what_is_applied_answers_and_is_counted_no_more() -> None:
    def check() -> None:
        waiting, one = Proposals(), proposal(1)
        waiting.add(7, one)
        assert (len(waiting), waiting.queued_bytes) == (1, 10)
        assert waiting.at(7) is one and waiting.at(8) is None
        one.reply.set_result(DONE)
        waiting.done(7, one)
        assert (len(waiting), waiting.queued_bytes) == (0, 0)
        assert one.reply.result() == DONE

    run(check)


def test_p13_an_entry_that_answers_nobody_leaves_an_unknown_outcome() -> None:
    """Such as the empty entry of a new leader, or a change of members."""

    def check() -> None:
        waiting, one = Proposals(), proposal(1)
        waiting.add(7, one)
        waiting.done(7, one)
        assert is_unknown(one) and not waiting

    run(check)


def test_p4_a_leader_that_is_none_any_more_keeps_its_writes_for_a_while() -> None:
    def check() -> None:
        waiting, early, late = Proposals(), proposal(1), proposal(3)
        waiting.add(7, early)
        waiting.outlive(100)
        assert waiting.queued_bytes == 0
        waiting.tick(110, ELECTION)
        # It leads again, and is replaced again: each counts from when its own leader ceased to lead.
        waiting.add(8, late)
        assert waiting.queued_bytes == 10
        waiting.tick(100 + OUTLIVE - 1, ELECTION)
        assert not early.reply.done()
        waiting.outlive(120)
        waiting.tick(100 + OUTLIVE, ELECTION)
        assert is_unknown(early) and not late.reply.done()
        waiting.tick(120 + OUTLIVE, ELECTION)
        assert is_unknown(late) and not waiting

    run(check)


def test_a_write_that_its_leader_still_leads_waits_as_long_as_it_takes() -> None:
    def check() -> None:
        waiting, old, new = Proposals(), proposal(1), proposal(3)
        waiting.add(7, old)
        waiting.outlive(0)
        waiting.add(8, new)
        waiting.tick(OUTLIVE, ELECTION)
        waiting.tick(100 * OUTLIVE, ELECTION)
        assert is_unknown(old) and not new.reply.done()
        assert waiting.queued_bytes == 10

    run(check)


def test_p4_a_place_in_the_log_that_is_taken_again_was_cut_off_before() -> None:
    def check() -> None:
        waiting, cut_off, own = Proposals(), proposal(1), proposal(3)
        waiting.add(7, cut_off)
        waiting.outlive(0)
        waiting.add(7, own)
        assert is_unknown(cut_off) and waiting.at(7) is own and waiting.queued_bytes == 10

    run(check)


@pytest.mark.parametrize("is_gone", [False, True])
def test_p4_nobody_is_left_waiting(is_gone: bool) -> None:
    def check() -> None:
        waiting, one = Proposals(), proposal(1)
        waiting.add(7, one)
        if is_gone:
            one.reply.cancel()
        waiting.give_up()
        assert one.reply.cancelled() if is_gone else is_unknown(one)
        assert (len(waiting), waiting.queued_bytes) == (0, 0)

    run(check)
