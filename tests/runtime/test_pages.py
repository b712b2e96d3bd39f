"""Pages, tails, exports and lists: every message and every context once, wherever the rows are at the moment."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context_node.contexts.requests import Append, ListContexts, PutContext
from context_node.runtime import histories, reads
from context_node.runtime.reads import Page
from support.running_nodes import BY_HAND, EAGER, NodeLife, append, life, list_ids, message, run

Asked = tuple[str, int | None, int, bool]

pages = st.one_of(
    st.tuples(st.just("page"), st.one_of(st.none(), st.integers(-40, 45)), st.integers(1, 40), st.booleans()),
    st.tuples(st.just("tail"), st.integers(0, 45), st.integers(1, 40), st.just(False)),
)


def seqs(page: Page) -> list[int]:
    return [json.loads(body)["seq"] for body in page.messages]


def expected(last_seq: int, asked: Asked) -> tuple[list[int], int | None]:
    """The seqs of a page and where the next begins, from a plain list."""
    name, at, limit, descending = asked
    everything = list(range(1, last_seq + 1))
    if name == "tail":
        assert at is not None
        rest = everything[: max(0, last_seq - at)]
        found = rest[-limit:]
        return found, rest[-limit - 1] if len(rest) > limit else None
    start = at if at is not None else (last_seq if descending else 1)
    if start < 0:
        start = max(1, last_seq + 1 + start)
    rest = [seq for seq in everything if seq <= start][::-1] if descending else [seq for seq in everything if seq >= start]
    return rest[:limit], rest[limit] if len(rest) > limit else None


async def ask(node: NodeLife, asked: Asked) -> Page:
    name, at, limit, descending = asked
    if name == "tail":
        assert at is not None
        return await node.service.tail("c", at, limit)
    return await node.service.page("c", at, limit, descending)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.integers(0, 20), fresh=st.integers(0, 20), asked=st.lists(pages, min_size=5, max_size=30))
def test_pages_join_what_is_stored_with_what_is_not_yet(tmp_path_factory: Any, stored: int, fresh: int, asked: list[Asked]) -> None:
    """H1, H2: any page over the boundary between database and memory is that of the plain list."""
    directory = tmp_path_factory.mktemp("pages")

    async def check() -> None:
        node = await life(directory, upkeep=BY_HAND, shards=1).start()
        await node.service.put_context("c", PutContext())
        for count in (stored, fresh):
            if count:
                await append(node.service, "c", *[f"m{number}" for number in range(count)])
            if count is stored:
                node.flush_all()
        for one in asked:
            page = await ask(node, one)
            assert (seqs(page), page.next_seq) == expected(stored + fresh, one), one
            assert page.last_seq == stored + fresh
        await node.stop()

    run(check())


def test_a_long_page_reads_a_bounded_number_of_rows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: a page that ends early by its bytes does not read all that was asked for first."""
    monkeypatch.setattr(reads, "PAGE_BYTES_MAX", 3_000)
    monkeypatch.setattr(histories, "ROWS_PER_READ", 10)
    asked: list[int] = []

    async def check() -> None:
        node = await life(tmp_path, shards=1).start()
        await append(node.service, "c", *["some words"] * 500)
        node.flush_all()
        store = node.replicas[0].store
        page = store.page
        monkeypatch.setattr(store, "page", lambda *arguments: asked.append(arguments[3]) or page(*arguments))
        for descending in (False, True):
            asked.clear()
            found = await node.service.page("c", None, 500, descending)
            assert 10 < len(found.messages) < 40
            assert max(asked) == 10 and sum(asked) <= len(found.messages) + 10
        await node.stop()

    run(check())


def test_a_page_of_large_messages_ends_early_and_says_where_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PAGE_BYTES_MAX", 20_000)
    size = reads.PAGE_BYTES_MAX // 4

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        for number in range(10):
            await node.service.append("c", Append([message("x" * size, token_count=1)], create=True))
            if number == 5:
                node.flush_all()
        for descending in (False, True):
            found: list[int] = []
            start: int | None = None
            calls = 0
            while start is not None or not calls:
                page = await node.service.page("c", start, 1000, descending)
                assert sum(map(len, page.messages)) <= reads.PAGE_BYTES_MAX + size + 1000
                found += seqs(page)
                start, calls = page.next_seq, calls + 1
            assert found == (list(range(10, 0, -1)) if descending else list(range(1, 11)))
            assert calls >= 3
        await node.stop()

    run(check())


def test_an_export_is_the_history_as_it_was_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: flushes and appends while an export runs neither cut nor double anything."""
    monkeypatch.setattr(reads, "EXPORT_BYTES", 5_000)

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        count = 617
        for first in range(0, count, 100):
            await append(node.service, "c", *[f"m{number}" for number in range(first, min(first + 100, count))])
        chunks = []
        async for chunk in node.service.export("c"):
            chunks.append(chunk)
            await append(node.service, "c", "later")
            node.flush_all()
            node.forget_all()
        assert len(chunks) > 10 and max(map(len, chunks)) < 6_000
        lines = b"".join(chunks).splitlines()
        assert [json.loads(line)["seq"] for line in lines] == list(range(1, count + 1))
        await node.stop()

    run(check())


def test_an_export_of_a_purged_context_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "EXPORT_BYTES", 1_000)

    async def check() -> None:
        node = await life(tmp_path).start()
        await append(node.service, "c", *["x"] * 100)
        export = node.service.export("c")
        first = await anext(export)
        assert 1 < len(first.splitlines()) < 20
        await node.service.purge_context("c")
        await append(node.service, "c", *["new"] * 200)
        assert [chunk async for chunk in export] == []
        await node.stop()

    run(check())


async def walk(node: NodeLife, limit: int, between: Callable[[], Awaitable[None]], **request: Any) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        views, cursor = await node.service.list_contexts(ListContexts(limit=limit, cursor=cursor, **request))
        found += [view.id for view in views]
        if cursor is None:
            return found
        await between()


def test_a_list_gives_every_context_once_over_all_shards(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path, shards=5, upkeep=BY_HAND).start()
        ids = [f"user-{number:03}" for number in range(97)]
        for number, context_id in enumerate(ids):
            await node.service.put_context(context_id, PutContext(metadata={"parity": "odd" if number % 2 else "even"}))
        by_update = sorted(ids, key=lambda one: -int(one[5:]))

        async def nothing() -> None:
            pass

        for limit in (1, 7, 96, 97, 98, 1000):
            assert await walk(node, limit, nothing) == ids
            assert await walk(node, limit, nothing, order="-updated_at") == by_update
        assert await walk(node, 10, nothing, prefix="user-01") == [f"user-01{digit}" for digit in range(10)]
        assert await walk(node, 10, nothing, metadata={"parity": "odd"}) == ids[1::2]
        await node.stop()

    run(check())


def test_a_list_walk_gives_what_stays_once_whatever_comes_and_goes_meanwhile(tmp_path: Path) -> None:
    """SEMANTICS.md, Shapes: with order=id what exists throughout the walk appears exactly once."""

    async def check() -> None:
        node = await life(tmp_path, shards=3, upkeep=EAGER).start()
        stay = [f"s{number:02}" for number in range(40)]
        for context_id in stay:
            await append(node.service, context_id)
        step = 0

        async def change() -> None:
            nonlocal step
            step += 1
            await append(node.service, f"s{step % 40:02}x")
            await append(node.service, stay[step * 7 % 40])
            if step % 3 == 0:
                await node.service.purge_context(f"s{step % 40:02}x")

        found = await walk(node, 3, change)
        assert [one for one in found if one in stay] == stay
        assert len(found) == len(set(found))
        assert step >= 13
        await node.stop()

    run(check())


def test_a_list_shows_what_was_written_before_it_although_nothing_was_stored(tmp_path: Path) -> None:
    """H5: a list is as fresh as any other read."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        for number in range(12):
            await append(node.service, f"c{number:02}")
            assert await list_ids(node.service) == [f"c{one:02}" for one in range(number + 1)]
        await node.service.delete_context("c03")
        assert "c03" not in await list_ids(node.service)
        assert await list_ids(node.service, status="tombstoned") == ["c03"]
        views, _ = await node.service.list_contexts(ListContexts(prefix="c04"))
        assert views[0] == await node.service.get_context("c04")
        await node.stop()

    run(check())


def test_reads_and_appends_at_the_same_time_agree_about_the_end(tmp_path: Path) -> None:
    """H1, H5: what a reply said is in every read that begins after it, through flushes and evictions."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=EAGER).start()

        async def one(context_id: str) -> None:
            for number in range(1, 81):
                reply = await append(node.service, context_id, f"m{number}")
                assert reply.last_seq == number
                if number % 5 == 0:
                    node.forget_all()
                page = await node.service.page(context_id, -3, 3, False)
                assert seqs(page) == list(range(max(1, number - 2), number + 1))
                window = await node.service.window(context_id, None, None, None)
                assert window.version == number

        await asyncio.gather(*[one(f"c{number}") for number in range(8)])
        assert node.upkeep.flushes > 8
        await node.stop()

    run(check())
