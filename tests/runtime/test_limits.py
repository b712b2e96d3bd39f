"""A limit on everything: queues refuse early, and log, WAL, memory and files stay bounded however much goes through."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from context_node.contexts.refusals import Overloaded, Refusal
from context_node.contexts.requests import Append, PutContext
from context_node.runtime import upkeep as upkeep_module
from context_node.runtime.databases import open_beside
from context_node.runtime.log_file import LogOptions
from context_node.runtime.log_store import LogStore
from context_node.runtime.upkeep import UpkeepLimits
from support.running_nodes import BY_HAND, append, history, life, list_ids, message, run, texts_of
from support.waiting import until


def test_s2_writes_beyond_the_queue_are_refused_at_once_and_lose_nothing(tmp_path: Path) -> None:
    """S2: bytes on their way are bounded per shard; what is refused was not done, what is accepted is there."""

    async def check() -> None:
        node = await life(tmp_path, shards=1, upkeep=BY_HAND, queued_bytes_per_shard_max=20_000).start()
        await node.service.put_context("c", PutContext())

        async def one(number: int) -> int | None:
            try:
                await append(node.service, "c", f"{number} " + "x" * 1_000)
                return number
            except Overloaded as refused:
                assert refused.details["retry_after_s"] >= 1
                return None

        results = await asyncio.gather(*[one(number) for number in range(200)])
        accepted = [number for number in results if number is not None]
        assert 10 <= len(accepted) <= 30
        replica = node.replicas[0]
        assert replica.queued_bytes == 0 and replica.in_flight == 0
        assert [int(text.split()[0]) for text in texts_of(await history(node.service, "c"))] == accepted
        await append(node.service, "c", "after the storm")
        await node.stop()

    run(check())


def test_s2_one_message_larger_than_the_queue_still_goes_through_alone(tmp_path: Path) -> None:
    async def check() -> None:
        node = await life(tmp_path, shards=1, queued_bytes_per_shard_max=1_000).start()
        assert (await append(node.service, "c", "x" * 5_000)).last_seq == 1
        await node.stop()

    run(check())


def test_refused_writes_leave_the_queue_too(tmp_path: Path) -> None:
    """A command that the state machine refuses gives its bytes back like any other."""

    async def check() -> None:
        node = await life(tmp_path, shards=1).start()
        await append(node.service, "c")
        for _ in range(20):
            with pytest.raises(Refusal):
                await node.service.append("c", Append([message()], if_version=99))
        assert node.replicas[0].queued_bytes == 0
        await node.stop()

    run(check())


def test_the_log_in_memory_and_on_disk_stays_bounded(tmp_path: Path) -> None:
    """P7: the log is truncated as the state becomes durable; its file and WAL do not grow with what went through."""

    async def check() -> None:
        limits = UpkeepLimits(flush_age_s=0.0, log_bytes_per_shard_max=50_000, log_bytes_max=150_000, interval_s=0.001)
        node = await life(tmp_path, upkeep=limits, log=LogOptions(wal_bytes_max=1 << 20)).start()
        refused = 0

        async def write(context_id: str) -> None:
            nonlocal refused
            for number in range(40):
                request = Append([message(f"{number} " + "x" * 5_000, id=f"{context_id}-{number}")], create=True)
                while True:
                    try:
                        await node.service.append(context_id, request)
                        break
                    except Overloaded:
                        refused += 1
                        await asyncio.sleep(0.001)
                total = sum(replica.group.log_bytes for replica in node.replicas)
                # Upkeep looks between two checkpoints; meanwhile each writer may come a few times.
                assert total < 2_000_000, "8 MB went through"

        await asyncio.gather(*[write(f"c{number}") for number in range(40)])
        assert (tmp_path / "log.db-wal").stat().st_size < 4 << 20
        assert (tmp_path / "log.db").stat().st_size < 4 << 20
        assert node.upkeep.checkpoints > 5 and node.engine.counters.log_checkpoints >= 1
        await node.restart(hard=True)
        for number in range(40):
            assert [int(text.split()[0]) for text in texts_of(await history(node.service, f"c{number}"))] == list(range(40))
        await node.stop()

    run(check())


def test_s2_writes_are_refused_while_the_disk_does_not_keep_up(tmp_path: Path) -> None:
    """S2, P7: a log that cannot be truncated, because a checkpoint cannot finish, does not fill the memory."""

    async def check() -> None:
        limits = UpkeepLimits(log_bytes_per_shard_max=20_000, log_bytes_max=20_000, interval_s=1e6)
        node = await life(tmp_path, shards=1, upkeep=limits).start()
        await append(node.service, "c")
        node.flush_all()
        reader = open_beside(node.replicas[0].store.path)
        reader.execute("BEGIN; SELECT count(*) FROM contexts")
        while not node.replicas[0].is_behind:
            await append(node.service, "c", "x" * 2_000)
            await node.upkeep.round()
        assert 40_000 < node.replicas[0].group.log_bytes < 45_000
        with pytest.raises(Overloaded):
            await append(node.service, "c", "refused")
        assert (await node.service.window("c", None, None, None)).version > 5, "reads go on"
        reader.close()
        await node.upkeep.round()
        assert node.replicas[0].group.log_bytes < 5_000
        await append(node.service, "c", "goes on")
        await node.stop()

    run(check())


def test_the_wal_of_a_state_database_stays_bounded_although_its_log_is_short(tmp_path: Path) -> None:
    """A window that is written again at every flush grows the WAL faster than the log."""

    async def check() -> None:
        limits = UpkeepLimits(
            flush_age_s=0.0, log_bytes_per_shard_max=1 << 30, log_bytes_max=1 << 30, wal_bytes_max=1 << 20, interval_s=0.001
        )
        node = await life(tmp_path, shards=1, upkeep=limits).start()
        for _ in range(400):
            await append(node.service, "c", *["short"] * 10)
        wal = next(path for path in (tmp_path / "state").iterdir() if path.name.startswith("00000") and path.name.endswith("-wal"))
        assert wal.stat().st_size < 3 << 20
        await node.stop()

    run(check())


def test_memory_holds_a_bounded_number_of_contexts_and_forgets_the_coldest(tmp_path: Path) -> None:
    async def check() -> None:
        limits = UpkeepLimits(flush_age_s=0.0, hot_bytes_max=400_000, interval_s=1e6)
        node = await life(tmp_path, upkeep=limits).start()
        ids = [f"c{number:03}" for number in range(300)]
        most = 0
        for at, context_id in enumerate(ids):
            await append(node.service, context_id, "some words " * 20)
            if at % 20 == 0:
                for _ in range(5):
                    await node.upkeep.round()
                most = max(most, sum(len(replica.machine.contexts) for replica in node.replicas))
        for _ in range(5):
            await node.upkeep.round()
        hot = {context_id for replica in node.replicas for context_id in replica.machine.contexts}
        assert node.upkeep.hot_bytes <= 500_000 and node.upkeep.evicted > 100
        assert most < 200 and 20 < len(hot) < 200
        assert ids[-1] in hot and ids[0] not in hot, "the coldest went first"
        for context_id in ids:
            assert (await append(node.service, context_id, "again")).last_seq == 2
        await node.stop()

    run(check())


def test_contexts_with_changes_or_followers_are_not_forgotten(tmp_path: Path) -> None:
    async def check() -> None:
        limits = UpkeepLimits(flush_age_s=1e6, hot_bytes_max=1, interval_s=1e6)
        node = await life(tmp_path, upkeep=limits).start()
        await append(node.service, "followed", "words")
        node.flush_all()
        follower = await node.service.subscribe("followed", -1)
        await append(node.service, "dirty", "words")
        for _ in range(5):
            await node.upkeep.round()
        assert {one for replica in node.replicas for one in replica.machine.contexts} == {"followed", "dirty"}
        follower.close()
        node.flush_all()
        for _ in range(5):
            await node.upkeep.round()
        assert not any(replica.machine.contexts for replica in node.replicas)
        await node.stop()

    run(check())


def files_with(directory: Path, marker: bytes) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file() and marker in path.read_bytes())


@pytest.mark.parametrize("late", [False, True])
def test_the_bytes_of_a_purged_context_leave_every_file(tmp_path: Path, late: bool) -> None:
    """SEMANTICS.md, Life of a context: databases, log and WALs, whether it was stored before the purge or not."""

    async def check() -> None:
        marker = "find-me-" + "7c2e51"
        node = await life(tmp_path, upkeep=BY_HAND).start()
        for number in range(30):
            await node.service.append("secret", Append([message(f"{marker} {number}", id=f"{marker}-id{number}")], create=True))
            await append(node.service, "other", "harmless")
        await node.service.append("secret", Append([message("x")], key=f"{marker}-key"))
        await node.service.put_context("secret", PutContext(metadata={"note": marker}))
        if late:
            for replica in node.replicas:
                assert await node.upkeep.checkpoint(replica)
            await append(node.service, "secret", f"{marker} after the checkpoint")
        assert files_with(tmp_path, marker.encode()), "the marker is found where it should be"
        await node.service.purge_context("secret")
        await append(node.service, "secret-not", "another context goes on meanwhile")
        await node.upkeep.scrub()
        assert files_with(tmp_path, marker.encode()) == []
        assert files_with(tmp_path, b"harmless"), "what was not purged stays"
        await node.restart(hard=True)
        assert sorted(await list_ids(node.service)) == ["other", "secret-not"]
        assert len(await history(node.service, "other")) == 30
        await node.stop()
        assert files_with(tmp_path, marker.encode()) == []

    run(check())


def test_a_purge_is_scrubbed_by_itself_in_time_while_writes_go_on(tmp_path: Path) -> None:
    async def check() -> None:
        marker = "find-me-" + "19ac40"
        limits = UpkeepLimits(flush_age_s=0.0, scrub_after_s=0.0, interval_s=0.001)
        node = await life(tmp_path, upkeep=limits).start()
        await append(node.service, "secret", *[marker] * 50)
        await node.service.purge_context("secret")
        is_over = False

        async def write() -> None:
            while not is_over:
                await append(node.service, "other")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            await until(lambda: not files_with(tmp_path, marker.encode()), "the bytes to be gone")
            is_over = True
        assert node.upkeep.scrubs >= 1
        await node.stop()

    run(check())


def test_a_purge_right_before_a_crash_is_scrubbed_after_the_restart(tmp_path: Path) -> None:
    """The bytes of a purge leave within minutes also if the node died before it came to it."""

    async def check() -> None:
        marker = "find-me-" + "b03d77"
        node = await life(tmp_path, upkeep=BY_HAND).start()
        await append(node.service, "secret", marker)
        await node.service.purge_context("secret")
        await node.kill()
        assert files_with(tmp_path, marker.encode())
        node.options = type(node.options)(str(tmp_path), shards=4, upkeep=UpkeepLimits(scrub_after_s=0.0, interval_s=0.001))
        await node.start()
        await until(lambda: not files_with(tmp_path, marker.encode()), "the bytes to be gone")
        await node.stop()

    run(check())


def test_a_start_scrubs_only_what_the_last_life_may_have_left(tmp_path: Path) -> None:
    """A scrub rewrites much: nodes that are restarted one after the other must not all do it for nothing."""

    async def check() -> None:
        node = await life(tmp_path, upkeep=BY_HAND).start()
        assert not node.upkeep.is_scrub_due, "it is new"
        await append(node.service, "c")
        await node.restart(hard=False)
        assert not node.upkeep.is_scrub_due, "nothing was purged"
        await node.restart(hard=True)
        assert node.upkeep.is_scrub_due, "nobody knows how it ended"
        await node.restart(hard=False)
        assert node.upkeep.is_scrub_due, "it did not come to it"
        await node.upkeep.scrub()
        await node.restart(hard=False)
        assert not node.upkeep.is_scrub_due
        await node.service.purge_context("c")
        await node.restart(hard=False)
        assert node.upkeep.is_scrub_due
        await node.stop()

    run(check())


def test_what_failed_is_scrubbed_by_the_next_life(tmp_path: Path) -> None:
    """A replica that failed is left out, and not tried again and again; but nobody says then that nothing is left."""

    async def check() -> None:
        node = await life(tmp_path, shards=4, upkeep=BY_HAND).start()
        await append(node.service, "c")
        node.replicas[0].fail("a test's")
        await node.upkeep.scrub()
        assert node.upkeep.scrubs == 1 and not node.upkeep.is_scrub_due and not node.upkeep.is_scrubbed
        await node.restart(hard=False)
        assert node.upkeep.is_scrub_due
        await node.upkeep.scrub()
        assert node.upkeep.is_scrubbed
        await node.stop()

    run(check())


def test_a_scrub_by_hand_and_the_one_of_upkeep_do_not_overtake_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that share the shards one would find none left, and scrub the log before the other has truncated it."""

    async def check() -> None:
        node = await life(tmp_path, shards=4, upkeep=UpkeepLimits(flush_age_s=0.0, scrub_after_s=0.0, interval_s=1e6)).start()
        needed: list[int] = []
        log_job = node.engine.log_job

        async def watched(job: Callable[[LogStore], None]) -> None:
            def work(log: LogStore) -> None:
                needed.append(sum(log.shard_bytes(replica.shard) for replica in node.replicas))
                job(log)

            await log_job(work)

        monkeypatch.setattr(node.engine, "log_job", watched)
        for number in range(5):
            await asyncio.gather(*(append(node.service, f"c{one}") for one in range(20)))
            await node.service.purge_context(f"c{number}")
            await asyncio.gather(node.upkeep.scrub(), node.upkeep.round(), node.upkeep.round())
            assert not node.upkeep.is_scrub_due
        assert needed and not any(needed)
        await node.stop()

    run(check())


def test_a_scrub_takes_its_time_and_lets_the_daily_work_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round scrubs one shard where that takes long, the last the log; each stores what is due. Stopped midway it begins anew."""

    async def check() -> None:
        monkeypatch.setattr(upkeep_module, "SCRUB_S", 0.0)
        marker = "find-me-" + "5d81f0"
        node = await life(tmp_path, shards=4, upkeep=UpkeepLimits(flush_age_s=0.0, scrub_after_s=0.0, interval_s=1e6)).start()
        await append(node.service, "secret", marker)
        await node.service.purge_context("secret")
        for number in range(len(node.replicas) + 1):
            assert node.upkeep.is_scrub_due and node.upkeep.scrubs == 0
            await append(node.service, f"c{number}")
            flushes = node.upkeep.flushes
            await node.upkeep.round()
            assert node.upkeep.flushes > flushes
        assert not node.upkeep.is_scrub_due and node.upkeep.scrubs == 1
        assert files_with(tmp_path, marker.encode()) == []
        await append(node.service, "secret", marker)
        await node.service.purge_context("secret")
        await node.upkeep.round()
        await node.restart(hard=False)
        assert node.upkeep.is_scrub_due
        await node.stop()

    run(check())


def test_s2_what_waits_to_be_stored_is_bounded_over_all_shards(tmp_path: Path) -> None:
    """Below the bound nothing young is flushed, and the gauge tells what waits; above it every shard is, but one whose files are in use."""

    async def check() -> None:
        limits = UpkeepLimits(flush_age_s=1e6, dirty_bytes_max=60_000, interval_s=1e6)
        node = await life(tmp_path, shards=4, upkeep=limits).start()
        upkeep, replicas = node.upkeep, [node.replicas[shard] for shard in range(4)]
        for number in range(40):
            await append(node.service, f"c{number}", "x" * 1_000)
        await upkeep.round()
        assert upkeep.dirty_bytes == sum(replica.machine.changes.pending_bytes for replica in replicas) > 40_000
        assert upkeep.flushes == 0
        for number in range(40):
            await append(node.service, f"c{number}", "x" * 1_000)
        assert all(replica.has_changes for replica in replicas)
        async with replicas[0].storing:
            await upkeep.round()
        assert [replica.has_changes for replica in replicas] == [True, False, False, False]
        assert upkeep.dirty_bytes == 0, "what may not be flushed now is not counted"
        await upkeep.round()
        assert upkeep.dirty_bytes == replicas[0].machine.changes.pending_bytes > 0
        await node.stop()

    run(check())
