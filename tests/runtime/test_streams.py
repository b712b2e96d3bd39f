"""Following a context: replay, one `context` frame, then live, each message once and in order, however fast the follower is."""

import asyncio
import json
from pathlib import Path

import pytest

from context_node.contexts.refusals import CursorAhead, Unavailable
from context_node.contexts.requests import Append, Compact, NewMessage, PutContext
from context_node.runtime.streams import BYTES_PER_PULL, NOTICES_MAX, Frame, Subscription
from support.running_nodes import BY_HAND, EAGER, append, life, message, run
from support.waiting import until


async def take(subscription: Subscription, count: int) -> list[Frame]:
    """The next `count` frames."""
    frames = []
    for _ in range(count):
        frame = await subscription.next(30.0)
        assert frame is not None, f"waited in vain after {frames}"
        frames.append(frame)
    return frames


async def all_now(subscription: Subscription) -> list[Frame]:
    """What there is without waiting for more."""
    frames = []
    while (frame := await subscription.next(0.0)) is not None:
        frames.append(frame)
    return frames


def shape(frames: list[Frame]) -> list[str | int]:
    """Seqs of messages and names of everything else."""
    return [frame.event if frame.seq is None else frame.seq for frame in frames]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("cursor", [0, 1, 249, 250, -1])
def test_a_follower_gets_the_replay_then_the_state_then_what_comes(tmp_path: Path, cursor: int, stored: bool) -> None:
    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        await append(node.service, "c", *[f"m{number}" for number in range(1, 251)])
        if stored:
            node.flush_all()
            node.forget_all()
        follower = await node.service.subscribe("c", cursor)
        first = [*range(cursor + 1 if cursor >= 0 else 251, 251), "context"]
        assert shape(await all_now(follower)) == first
        await append(node.service, "c", "live")
        live = await take(follower, 1)
        assert shape(live) == [251] and json.loads(live[0].data)["parts"][0]["text"] == "live"
        assert await follower.next(0.0) is None
        follower.close()
        follower.close()
        assert not any(replica.followed for replica in node.replicas)
        await node.stop()

    run(check())


def test_the_context_frame_tells_what_a_follower_may_have_missed(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "one", "two")
        view = await node.service.get_context("c")
        follower = await node.service.subscribe("c", 2)
        state = json.loads((await take(follower, 1))[0].data)
        assert (state["incarnation"], state["version"], state["last_seq"]) == (view.incarnation, view.version, 2)
        assert state["used_tokens"] == view.used_tokens
        follower.close()
        await node.stop()

    run(check())


def test_a_cursor_beyond_the_end_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "one")
        with pytest.raises(CursorAhead) as refused:
            await node.service.subscribe("c", 2)
        assert refused.value.details == {"cursor": 2, "last_seq": 1}
        await node.stop()

    run(check())


def test_a_slow_follower_gets_one_gap_and_goes_on_from_there(tmp_path: Path) -> None:
    """SEMANTICS.md, Streams: what is missed by falling behind is told once, whole."""

    async def check() -> None:
        node = await life(tmp_path, stream_lag_max=10).start()
        await append(node.service, "c", "one")
        follower = await node.service.subscribe("c", 0)
        assert shape(await all_now(follower)) == [1, "context"]
        for _ in range(10):
            await append(node.service, "c")
        assert shape(await all_now(follower)) == [*range(2, 12)], "as far behind as is allowed"
        for _ in range(25):
            await append(node.service, "c")
        frames = await all_now(follower)
        assert shape(frames) == ["gap"]
        assert json.loads(frames[0].data) == {"from_seq": 12, "to_seq": 36}
        assert follower.lagged == 1
        await append(node.service, "c")
        assert shape(await all_now(follower)) == [37]
        follower.close()
        await node.stop()

    run(check())


def test_a_replay_is_never_cut_short_however_long_it_is(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path, stream_lag_max=10).start()
        for _ in range(5):
            await append(node.service, "c", *["x"] * 500)
        follower = await node.service.subscribe("c", 0)
        assert shape(await all_now(follower)) == [*range(1, 2501), "context"]
        follower.close()
        await node.stop()

    run(check())


def test_frames_about_the_window_come_after_the_messages_that_caused_them(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await node.service.put_context("c", PutContext(token_budget=120))
        follower = await node.service.subscribe("c", 0)
        assert shape(await all_now(follower)) == ["context"]
        versions: dict[int, int] = {}
        for number in range(30):
            reply = await append(node.service, "c", f"some words to fill the window {number}")
            versions[reply.last_seq] = reply.version
        await node.service.compact("c", Compact([message("in short", "assistant")], covers=(28, 29)))
        await node.service.delete_context("c")
        frames = await all_now(follower)
        names = shape(frames)
        assert [seq for seq in names if isinstance(seq, int)] == [*range(1, 31)]
        assert names[-2:] == ["compaction", "tombstoned"] and names.count("compaction") > 1
        seen = 0
        for frame in frames:
            if frame.seq is not None:
                seen = frame.seq
            elif frame.event == "compaction":
                state = json.loads(frame.data)
                assert state["last_seq"] == seen, "it tells the window with exactly the messages before it"
                assert state["version"] == versions[seen] or seen == 30
        await node.service.put_context("c", PutContext())
        await node.service.purge_context("c")
        assert shape(await all_now(follower))[-1] == "purged"
        follower.close()
        await node.stop()

    run(check())


def test_purged_ends_the_stream_and_nothing_of_a_new_context_of_that_id_follows(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "old one", "old two")
        fast, slow = await node.service.subscribe("c", 0), await node.service.subscribe("c", 0)
        assert shape(await all_now(fast)) == [1, 2, "context"]
        await append(node.service, "c", "old three")
        await node.service.purge_context("c")
        for number in range(NOTICES_MAX * 2):
            await append(node.service, "c", f"new {number} " + "word " * 20)
            await node.service.compact("c", Compact([message("short")], if_version=None))
        for follower in (fast, slow):
            frames = await all_now(follower)
            assert shape(frames)[-1] == "purged"
            assert b"new" not in b"".join(frame.data for frame in frames)
            assert await follower.next(0.0) is None
            follower.close()
        await node.stop()

    run(check())


def test_a_tombstone_is_told_even_if_many_rewrites_follow_it(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "one")
        follower = await node.service.subscribe("c", -1)
        await all_now(follower)
        await node.service.delete_context("c")
        await node.service.put_context("c", PutContext())
        for _ in range(NOTICES_MAX + 5):
            await node.service.compact("c", Compact([message("short")]))
        names = shape(await all_now(follower))
        assert names.count("tombstoned") == 1 and names[0] == "tombstoned"
        assert len(names) <= NOTICES_MAX + 1, "notices that nobody takes are bounded"
        follower.close()
        await node.stop()

    run(check())


def test_a_follower_of_large_messages_holds_few_of_them(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        text = "x" * 400_000
        for _ in range(8):
            await node.service.append("c", Append([message(text, token_count=10)], create=True))
        follower = await node.service.subscribe("c", 0)
        seqs = []
        for _ in range(8):
            seqs += shape(await take(follower, 1))
            assert sum(len(frame.data) for frame in follower._ready) <= BYTES_PER_PULL + len(text) + 200
        assert seqs == [*range(1, 9)]
        follower.close()
        await node.stop()

    run(check())


def test_followers_of_a_context_under_load_lose_nothing_and_get_nothing_twice(tmp_path: Path) -> None:
    """H2: appenders, followers that come and go, flushes, evictions and truncation at the same time."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=EAGER, stream_lag_max=100_000).start()
        contexts, appends = ("a", "b", "c"), 120
        for context_id in contexts:
            await node.service.put_context(context_id, PutContext(token_budget=300))
        total = appends * 4
        said: dict[str, dict[int, str]] = {context_id: {} for context_id in contexts}

        async def write(context_id: str, writer: int) -> None:
            for number in range(appends):
                text = f"{context_id} {writer} {number}"
                reply = await append(node.service, context_id, text)
                said[context_id][reply.last_seq] = text

        async def follow(context_id: str, pace: int) -> dict[int, str]:
            heard: dict[int, str] = {}
            cursor, subscription, contexts_seen = 0, await node.service.subscribe(context_id, 0), 0
            while cursor < total:
                frame = await subscription.next(30.0)
                assert frame is not None
                contexts_seen += frame.event == "context"
                if frame.seq is None:
                    assert frame.event in ("context", "compaction")
                    continue
                assert frame.seq == cursor + 1, "in order, without holes, each once"
                cursor = frame.seq
                heard[cursor] = json.loads(frame.data)["parts"][0]["text"]
                if pace and cursor % pace == 0:
                    # Leave, let others write, and come back with the cursor.
                    subscription.close()
                    await asyncio.sleep(0)
                    subscription = await node.service.subscribe(context_id, cursor)
            subscription.close()
            return heard

        async with asyncio.TaskGroup() as tasks:
            followers = {(one, pace): tasks.create_task(follow(one, pace)) for one in contexts for pace in (0, 7, 50)}
            for one in contexts:
                for writer in range(4):
                    tasks.create_task(write(one, writer))
        for (context_id, _), follower in followers.items():
            assert follower.result() == said[context_id]
        assert node.upkeep.flushes > 10
        await node.stop()

    run(check())


def test_a_follower_is_woken_and_told_when_the_node_stops(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", "one")
        follower = await node.service.subscribe("c", -1)
        await all_now(follower)
        waiting = asyncio.create_task(follower.next(60.0))
        await until(lambda: not follower._wake.is_set(), "the follower to wait")
        await node.stop()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 5)

    run(check())


def test_s1_a_follower_that_reads_nothing_harms_no_shard(tmp_path: Path) -> None:
    """S1: a context deleted and revived more often than notices are kept, behind a reader that stands still."""

    async def check() -> None:
        node = await life(tmp_path).start()
        await node.service.append("a", Append([NewMessage("user", [{"type": "text", "text": "hello"}])], create=True))
        follower = await node.service.subscribe("a", 0)
        for _ in range(70):
            await node.service.delete_context("a")
            await node.service.put_context("a", PutContext())
        reply = await node.service.append("a", Append([NewMessage("user", [{"type": "text", "text": "still here"}])]))
        assert reply.last_seq == 2
        follower.close()
        await node.stop()

    run(check())
