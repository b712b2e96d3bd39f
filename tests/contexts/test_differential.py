"""The same log gives the same state, byte for byte, whenever contexts are forgotten or the machine starts anew (W5)."""

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.random_commands import Step, logs, perform
from support.stored_shard import StoredShard
from support.window_rules import check_window


def _totals(shard: StoredShard) -> dict[str, object]:
    """All of every window, except what only makes work faster."""
    seen = {}
    for name in ("c", "d"):
        context = shard.context(name)
        if context is not None:
            window = context.window
            open_calls = {
                call_id: [
                    (call.item.seq, call.part, call.marker is not None, call.bond.root().tokens, call.bond.root().head) for call in calls
                ]
                for call_id, calls in window.open_calls.items()
            }
            bodies = [item.body for item in window.items]
            numbers = (window.tokens, window.size_bytes, window.head_tokens, window.head_count, window.waiting, window.stable_count)
            flags = (sorted(window.loose), window.is_stale, window.rewritten_seq, window.forced)
            seen[name] = (bodies, numbers, flags, open_calls, context.rewritten, context.rewritten_floor)
    return seen


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(moves=logs(60), seed=st.integers(0, 2**32 - 1))
def test_w5_two_machines_agree_although_one_forgets_and_restarts(moves: list[Step], seed: int) -> None:
    steady, restless = StoredShard(), StoredShard()
    rng = Random(seed)
    for move in moves:
        pause = rng.choice(("", "", "", "flush", "forget", "restart"))
        if pause:
            getattr(restless, pause)()
        assert perform(steady, move) == perform(restless, move)
        restless_view = _totals(restless)
        assert _totals(steady) == restless_view
        restless.forget()
        # Read back, a window has the same totals and open calls as the one that lived through it all.
        assert _totals(restless) == restless_view
        for name in restless_view:
            answer = steady.window_bytes(name)
            assert answer == restless.window_bytes(name)
            check_window(steady.window(name))
    restless.restart()
    assert steady.dump() == restless.dump()
    assert (steady.machine.clock_ms, steady.machine.next_ordinal) == (restless.machine.clock_ms, restless.machine.next_ordinal)
