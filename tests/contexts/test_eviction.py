"""Eviction of windows in which nothing is linked takes a short way; it must lead where the long one does."""

from hypothesis import given
from hypothesis import strategies as st

from context_node.contexts.compaction import Plan, Strategy, _evict, _evict_messages, _Goal
from context_node.contexts.items import Info, Item, live_item
from context_node.contexts.parts import TEXT, Mark
from context_node.contexts.units import analyse
from context_node.contexts.window import Window

messages = st.tuples(
    st.sampled_from(["user", "user", "assistant", "assistant", "tool", "system"]), st.integers(0, 40), st.sampled_from([False] * 5 + [True])
)
plans = st.builds(
    Plan,
    st.integers(1, 600),
    st.just(0.7),
    st.sampled_from([0.1, 0.4, 0.6]),
    st.builds(Strategy, st.just(()), st.none() | st.integers(1, 12), st.booleans()),
    st.integers(1, 30),
    st.sampled_from([50, 500, 1 << 20]),
)


def item_of(seq: int, role: str, tokens: int, pinned: bool) -> Item:
    return live_item(seq, b"x" * tokens, Info(role, tokens, (Mark(TEXT, "text", tokens),), seq), pinned)


def window_of(items: list[Item]) -> Window:
    window = Window()
    window.replace_items(items)
    return window


@given(st.lists(messages, min_size=1, max_size=40), plans, st.randoms(use_true_random=False))
def test_w1_w3_the_short_way_evicts_what_the_long_one_does(said: list[tuple[str, int, bool]], plan: Plan, random: object) -> None:
    items = [item_of(seq, *each) for seq, each in enumerate(said, 1)]
    if random.random() < 0.3:  # type: ignore[attr-defined]
        random.shuffle(items)  # type: ignore[attr-defined]
    short, long = window_of(items), window_of(items)
    analysis = analyse(long.items, plan.budget)
    goal = _Goal.of(long, plan, analysis.counted)
    assert _evict_messages(short, plan) == (not goal.is_met(long, analysis) and _evict(long, analysis, goal))
    assert [item.seq for item in short.items] == [item.seq for item in long.items]
    assert (short.tokens, short.size_bytes, short.head_tokens) == (long.tokens, long.size_bytes, long.head_tokens)
