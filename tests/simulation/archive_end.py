"""The end of a simulation with an archive: it has everything, exactly, and the nodes read it as their own.

Knows the world, its clients and the simulated Postgres.
"""

import asyncio

import msgspec

from context_node.contexts.context import Context, read_head
from context_node.contexts.refusals import ContextNotFound, Refusal
from context_node.contexts.requests import Append
from context_node.runtime.replica import Replica
from context_node.runtime.shards import SYSTEM_SHARD
from simulation.clients import LOGS, WILD, Clients, Lost, NotSent
from simulation.world import Life, World
from support.running_nodes import message

ARCHIVED_S = 60.0
"""Within so much time after everything was healed the archive has all."""


async def judge_archive(world: World, clients: Clients) -> None:
    """ARCHIVE: it has every context up to its end, and nothing of what was purged. H6: every node reads the whole history."""
    archive = world.archive
    assert archive is not None
    if archive.has_gone_back:
        # Contexts that nothing happens to are not looked at.
        for context_id in LOGS:
            await _touch(clients, world, context_id)
    await world.until(lambda: not _behind(world), ARCHIVED_S, "ARCHIVE", lambda: f"still behind: {_behind(world)}")
    living = {(row.id, read_head(row.record).incarnation) for replica in _leaders(world) for row in replica.store.list_contexts(limit=100)}
    left = {key for key in (*archive.messages, *archive.contexts) if key not in living}
    world.judge.check(not left, "PURGE", f"the archive still has {left}")
    for life in world.lives:
        for context_id in (*LOGS, *WILD):
            await _compare(world, clients, life, context_id)


async def _touch(clients: Clients, world: World, context_id: str) -> None:
    one = Append([message("the last", id="the last")], create=True)
    for number in range(40):
        try:
            await clients.ask(world.lives[number % len(world.lives)], lambda service: service.append(context_id, one))
        except (NotSent, Lost, Refusal):
            await asyncio.sleep(0.1)
        else:
            return
    clients.judge.fail("LIVENESS", f"nobody takes a message of {context_id} after everything was healed")


def _leaders(world: World) -> list[Replica]:
    return [
        replica
        for life in world.lives
        for replica in life.replicas
        if replica.shard != SYSTEM_SHARD and replica.failure is None and replica.group.is_leader
    ]


def _behind(world: World) -> list[str]:
    limits = world.archiving.limits
    found = []
    leaders = _leaders(world)
    if len(leaders) < world.lives[0].options().shards:
        found.append("a shard without a leader")
    for replica in leaders:
        replica.flush()
        found += [str(key) for key in replica.machine.erasures]
        contexts: list[Context | None] = [replica.context(row.id) for row in replica.store.list_contexts(limit=100)]
        for context in contexts:
            assert context is not None
            head = context.head
            if limits.is_behind(head, replica.machine.archive_epoch):
                found.append(f"{context.id} {head.archived_seq} of {head.last_seq}, trimmed to {head.trimmed_seq}")
    return found


async def _compare(world: World, clients: Clients, life: Life, context_id: str) -> None:
    archive = world.archive
    assert archive is not None
    shown = await _history(clients, life, context_id)
    kept = [dict(rows) for (name, _), rows in archive.messages.items() if name == context_id]
    rows = kept[0] if kept else {}
    world.judge.check(len(kept) <= 1, "PURGE", f"{context_id} is archived {len(kept)} times")
    archived = [rows[seq].raw for seq in sorted(rows)]
    seqs = [msgspec.json.decode(body)["seq"] for body in shown]
    world.judge.check(seqs == list(range(1, len(shown) + 1)), "H6", f"{life.name} shows {context_id} with a hole: {seqs}")
    world.judge.check(shown == archived, "ARCHIVE", f"{context_id}: {life.name} shows {len(shown)} messages, archived are {len(archived)}")


async def _history(clients: Clients, life: Life, context_id: str) -> list[bytes]:
    for _ in range(40):
        try:
            return [body for page in await clients.ask(life, lambda service: _pages(service, context_id)) for body in page]
        except ContextNotFound:
            return []
        except (NotSent, Lost, Refusal):
            await asyncio.sleep(0.1)
    clients.judge.fail("LIVENESS", f"{life.name} does not show {context_id} after everything was healed")
    return []


async def _pages(service: object, context_id: str) -> list[list[bytes]]:
    pages: list[list[bytes]] = []
    start: int | None = 1
    while start is not None:
        page = await service.page(context_id, start, 7, False)  # type: ignore[attr-defined]
        pages.append(list(page.messages))
        start = page.next_seq
    return pages
