"""What was trimmed is read from Postgres, and nobody notices: pages, tails, exports, streams, pins and rebuilt windows (H6)."""

import asyncio
import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from context_node.contexts.refusals import ArchiveUnavailable, ContextNotFound, Refusal, Unavailable
from context_node.contexts.requests import Append, Compact, PolicyChoice, PutContext
from context_node.runtime import histories
from support.archive_calls import archived, history, metric
from support.archived_nodes import ArchivedNode, archived_node, shown
from support.cluster_calls import call
from support.contextstore_process import running_node
from support.postgres import PostgresServer
from support.running_nodes import NodeLife, append, life, message, run
from support.waiting import wait_until

TALKS = ("talk-a", "talk-b", "talk-c")


class Told:
    """A clock that shows the same to two nodes until it is moved."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


async def everything_of(service: Any, rng: Random, context_id: str) -> list[Any]:
    """Random reads of a context; the same for the same `rng`."""
    try:
        seen: list[Any] = [await shown(service, context_id)]
    except ContextNotFound:
        return []
    for _ in range(12):
        start = rng.choice((None, rng.randint(1, 90), -rng.randint(1, 90)))
        limit, offset, is_descending = rng.choice((1, 3, 17, 100, 1000)), rng.randint(0, 70), rng.random() < 0.5
        seen.append(await service.page(context_id, start, limit, is_descending))
        seen.append(await service.tail(context_id, offset, limit))
    seen.append((await service.window(context_id, None, None, None)).body)
    seen.append(b"".join([chunk async for chunk in service.export(context_id)]))
    seen.append(await replay(service, context_id, rng.randint(0, 90)))
    return seen


async def replay(service: Any, context_id: str, cursor: int) -> Any:
    """What a stream gives from a cursor up to the present."""
    try:
        subscription = await service.subscribe(context_id, cursor)
    except Refusal as refusal:
        return refusal.code
    frames = []
    while (frame := await subscription.next(20.0)) is not None and frame.event == "message":
        frames.append((frame.seq, frame.data))
    subscription.close()
    return frames


async def change(rng: Random, services: list[Any]) -> None:
    """One random change, the same for all; they must answer the same."""
    context_id, kind, seed = rng.choice(TALKS), rng.random(), rng.getrandbits(32)
    answers = []
    for service in services:
        same = Random(seed)
        try:
            answers.append(await _changed(same, service, context_id, kind))
        except Refusal as refusal:
            answers.append(refusal.code)
    assert all(answer == answers[0] for answer in answers), (context_id, kind, answers)


async def _changed(rng: Random, service: Any, context_id: str, kind: float) -> Any:
    if kind < 0.6:
        ids = [f"id-{rng.randint(1, 500)}" if rng.random() < 0.3 else None for _ in range(rng.choice((1, 2, 9)))]
        messages = [message(f"{rng.getrandbits(40)} " * rng.choice((1, 3, 60)), id=each) for each in ids]
        return await service.append(context_id, Append(messages, create=True, batch=True))
    if kind < 0.7:
        spec = PolicyChoice("last_n", {"limit": rng.randint(1, 12)})
        put, _ = await service.put_context(context_id, PutContext(policy=spec, token_budget=rng.randint(500, 3000)))
        return put
    if kind < 0.8:
        return await service.pin(context_id, rng.randint(1, 60), rng.random() < 0.7)
    if kind < 0.9:
        return await service.compact(context_id, Compact(rebuild=True))
    if kind < 0.98:
        first = rng.randint(1, 60)
        return await service.compact(context_id, Compact([message("in short", "assistant")], covers=(first, first + rng.randint(0, 9))))
    return await service.purge_context(context_id)


@pytest.mark.parametrize("seed", range(8))
def test_h6_hot_cold_and_the_boundary_equal_an_untrimmed_twin(dsn: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random histories, random pages, on a node that keeps a few messages and on one that keeps all."""
    rng = Random(seed)
    monkeypatch.setattr(histories, "ROWS_PER_READ", rng.choice((3, 10, 100)))
    clock = Told()

    async def check() -> None:
        whole = life(tmp_path / "whole")
        whole.clock = clock
        await whole.start()
        async with archived_node(
            tmp_path / "trimmed", dsn, tail_keep=rng.choice((0, 2, 7)), clock=clock, cache_bytes=rng.choice((0, 2_000, 1 << 20))
        ) as trimmed:
            services = [whole.service, trimmed.service]
            for turn in range(120):
                clock.now_ms += 1
                await change(rng, services)
                if turn % 15 == 14:
                    await trimmed.archived()
                    _forget(rng, trimmed.life)
                    for context_id in TALKS:
                        state = rng.getstate()
                        expected = await everything_of(services[0], rng, context_id)
                        rng.setstate(state)
                        for left, right in zip(await everything_of(services[1], rng, context_id), expected, strict=True):
                            assert left == right
            assert any(trimmed.trimmed_seq(context_id) for context_id in TALKS)
            assert trimmed.cold.reads
        await whole.stop()

    run(check())


def _forget(rng: Random, one: NodeLife) -> None:
    one.flush_all()
    if rng.random() < 0.5:
        one.forget_all()


async def filled(node: ArchivedNode, count: int = 30) -> None:
    """A context of `count` messages of which the archive has all and the node the newest few."""
    await node.service.put_context("talk", PutContext(policy=PolicyChoice("last_n", {"limit": 2})))
    for number in range(1, count + 1):
        await append(node.service, "talk", f"message {number}")
    await node.archived()
    node.life.flush_all()


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()


def test_while_postgres_is_away_cold_reads_are_refused_and_all_else_goes_on(own: PostgresServer, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, own.dsn, tail_keep=5, cache_bytes=0) as node:
            await filled(node)
            own.stop()
            for cold in (node.service.page("talk", 1, 10, False), node.service.tail("talk", 0, 10), node.service.page("talk", 26, 9, True)):
                with pytest.raises(ArchiveUnavailable, match="in the archive, which cannot be read now") as refusal:
                    await cold
                assert refusal.value.details["first_seq"] <= 25
                assert own.dsn not in refusal.value.message
            assert len((await node.service.page("talk", 26, 10, False)).messages) == 5
            assert (await node.service.window("talk", None, None, None)).body
            assert (await append(node.service, "talk", "more")).first_seq == 31
            with pytest.raises(ArchiveUnavailable):
                await node.service.pin("talk", 3, True)
            # Of what the window holds nothing is asked.
            await node.service.pin("talk", 30, True)
            subscription = await node.service.subscribe("talk", 0)
            with pytest.raises(ArchiveUnavailable):
                await subscription.next(20.0)
            subscription.close()
            own.start()
            async with asyncio.timeout(30):
                while True:
                    try:
                        page = await node.service.page("talk", 1, 100, False)
                        break
                    except ArchiveUnavailable:
                        await asyncio.sleep(0.1)
            assert len(page.messages) == 31
            await node.archived()

    run(check())


def test_a_hole_in_the_archive_is_an_error_and_never_a_shorter_history(dsn: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5, cache_bytes=0) as node:
            await filled(node)
            await execute(dsn, "DELETE FROM contextstore.messages WHERE seq = 12")
            with pytest.raises(ArchiveUnavailable, match="hole"):
                await node.service.page("talk", 1, 30, False)
            with pytest.raises(ArchiveUnavailable, match="hole"):
                [chunk async for chunk in node.service.export("talk")]
            assert len((await node.service.page("talk", 1, 11, False)).messages) == 11

    run(check())


def test_a_node_without_the_archives_settings_says_what_is_missing(dsn: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5) as node:
            await filled(node)
        bare = life(tmp_path)
        await bare.start()
        with pytest.raises(ArchiveUnavailable, match="start it with the archive's settings"):
            await bare.service.page("talk", 1, 30, False)
        assert len((await bare.service.page("talk", 26, 10, False)).messages) == 5
        await bare.stop()

    run(check())


def test_what_was_read_before_is_read_from_memory_until_it_is_purged(dsn: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5) as node:
            await filled(node)
            first = await node.service.page("talk", 1, 20, False)
            reads = node.cold.reads
            assert await node.service.page("talk", 1, 20, False) == first
            assert (await node.service.page("talk", 20, 20, True)).messages == first.messages[::-1]
            assert node.cold.reads == reads
            await node.service.purge_context("talk")
            assert node.cold._cache.bytes == 0
            await filled(node)
            assert (await node.service.page("talk", 1, 20, False)).messages != first.messages

    run(check())


def test_a_setting_that_is_new_trims_what_was_archived_before(dsn: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=None) as node:
            await filled(node)
            assert node.trimmed_seq("talk") == 0
        async with archived_node(tmp_path, dsn, tail_keep=5) as node:
            await node.archived()
            assert node.trimmed_seq("talk") == 25
            stored = node.life.node.shards.replica_of("talk")
            await stored.stored()
            context = stored.context("talk")
            assert context is not None
            assert len(stored.store.page(context.ordinal, 1, 30, 30)) == 5
            assert len((await node.service.page("talk", 1, 30, False)).messages) == 30

    run(check())


def test_clients_are_told_what_cannot_be_read_now(own: PostgresServer, tmp_path: Path) -> None:
    words = ("--archive-flush-s", "0.05", "--archive-tail-keep", "2")
    with running_node(tmp_path / "data", *words, CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        url = f"{node.url}/v1/contexts/talk"
        assert call(url, "PUT", {"policy": {"strategy": "last_n", "config": {"limit": 2}}})[0] == 201
        for number in range(20):
            assert call(f"{url}/messages", "POST", {"messages": [{"role": "user", "content": f"message {number}"}]})[0] == 201
        wait_until(lambda: metric(node, "archive_trimmed_messages_total") == 18, "everything to be trimmed")
        whole = history(node, "talk")
        assert whole == archived(own.dsn, "talk")
        own.stop()
        # Another context's reads empty the memory of what was read: here a restart does.
        node.send(signal.SIGKILL)
        node.wait_end()
    with running_node(tmp_path / "data", *words, CONTEXTSTORE_ARCHIVE_POSTGRES=own.dsn) as node:
        url = f"{node.url}/v1/contexts/talk"
        for path in ("messages?from_seq=1", "tail?limit=5", "export"):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(f"{url}/{path}", timeout=30)
            problem = json.loads(refusal.value.read())
            assert (refusal.value.code, problem["error"]) == (503, "archive_unavailable")
            assert int(refusal.value.headers["Retry-After"]) >= 1
            assert "the window and writes go on" in problem["message"]
            assert problem["details"]["last_seq"] <= 20
        assert call(f"{url}/messages?from_seq=19")[0] == 200
        assert call(f"{url}/context")[0] == 200
        assert call(f"{url}/messages", "POST", {"messages": [{"role": "user", "content": "more"}]})[0] == 201
        own.start()
        wait_until(lambda: call(f"{url}/messages?from_seq=1")[0] == 200, "Postgres to be read again", 30.0)
        assert history(node, "talk")[:20] == whole


def test_a_shard_that_leaves_the_node_while_the_archive_is_asked_is_unavailable(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with archived_node(tmp_path, dsn, tail_keep=5) as node:
            await filled(node)
            replica = node.life.node.shards.replica_of("talk")
            read = node.cold.read

            async def leave(*arguments: Any, **named: Any) -> Any:
                found = await read(*arguments, **named)
                replica.fail("This shard moves; try again shortly.")
                replica.store.close()
                return found

            monkeypatch.setattr(node.cold, "read", leave)
            with pytest.raises(Unavailable, match="This shard moves"):
                await node.service.page("talk", 1, 30, False)
            with pytest.raises(Unavailable, match="This shard moves"):
                [chunk async for chunk in node.service.export("talk")]

    run(check())
