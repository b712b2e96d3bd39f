"""The threads for what waits on a disk: in order, one at a time, and never silent about what they will not do."""

import asyncio
from pathlib import Path

import apsw
import pytest

from context_node.raft import _core
from context_node.runtime.databases import REAL_DISK, DatabaseOptions, DiskAccess, StoreInUse, open_database, wal_file
from context_node.runtime.engine import Engine
from context_node.runtime.log_store import LogStore
from context_node.runtime.worker import Outcome, Worker
from support.log_model import CODEC, IDENTITY
from support.power_cut_vfs import PowerCutDisk


def test_jobs_run_in_order_and_their_outcomes_come_back() -> None:
    async def check() -> None:
        worker = Worker(asyncio.get_running_loop(), "test")
        done: list[int] = []
        results = await asyncio.gather(*(worker.run(lambda number=number: done.append(number) or number) for number in range(20)))
        assert results == done == list(range(20))
        worker.close()

    asyncio.run(check())


def test_an_error_of_a_job_is_raised_where_it_is_awaited() -> None:
    async def check() -> None:
        worker = Worker(asyncio.get_running_loop(), "test")
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        assert await worker.run(lambda: "as before") == "as before"
        worker.close()

    asyncio.run(check())


def test_a_closed_worker_says_so_instead_of_leaving_its_caller_waiting() -> None:
    async def check() -> None:
        worker = Worker(asyncio.get_running_loop(), "test")
        worker.close()
        worker.close()
        with pytest.raises(RuntimeError, match="closed"):
            await worker.run(lambda: None)

    asyncio.run(check())


def written(path: Path, disk: DiskAccess = REAL_DISK) -> apsw.Connection:
    """A database whose last commit is not synced."""
    database = open_database(str(path), DatabaseOptions(synchronous="NORMAL", exclusive=True, disk=disk))
    database.execute("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
    return database


async def synced(worker: Worker, file: int) -> BaseException | None:
    told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    worker.sync(file, lambda _none, error: told.set_result(error))
    return await told


def test_p2_a_sync_makes_the_wal_durable_and_is_told_in_order() -> None:
    async def check() -> None:
        disk = PowerCutDisk()
        database = written(Path("a.db"), disk)
        worker = Worker(asyncio.get_running_loop(), "test")
        before = disk.syncs.get("a.db-wal", 0)
        assert disk.names["a.db-wal"].pending
        order: list[int] = []
        for number in range(20):
            worker.sync(wal_file(database), lambda _none, error, number=number: order.append(number) if error is None else None)
        assert await synced(worker, wal_file(database)) is None
        assert order == list(range(20)) and disk.syncs["a.db-wal"] == before + 21
        assert not disk.names["a.db-wal"].pending
        worker.close()
        disk.close()

    asyncio.run(check())


def test_p10_a_sync_that_fails_says_so_in_either_thread() -> None:
    async def check() -> None:
        disk = PowerCutDisk()
        database = written(Path("a.db"), disk)
        worker = Worker(asyncio.get_running_loop(), "test")
        disk.failing_syncs = 2
        assert isinstance(await synced(worker, wal_file(database)), OSError)
        with pytest.raises(apsw.IOError, match="failed a sync"):
            _core.sync_file(wal_file(database))
        assert await synced(worker, wal_file(database)) is None
        worker.close()
        disk.close()

    asyncio.run(check())


def test_a_worker_that_is_closed_waits_for_its_syncs_and_takes_no_more(tmp_path: Path) -> None:
    async def check() -> None:
        database = written(tmp_path / "a.db")
        worker = Worker(asyncio.get_running_loop(), "test")
        told: list[object] = []
        worker.sync(wal_file(database), lambda _none, error: told.append(error))
        worker.close()
        with pytest.raises(RuntimeError, match="closed"):
            worker.sync(wal_file(database), lambda _none, error: told.append(error))
        database.close()
        await asyncio.sleep(0)
        assert told == []

    asyncio.run(check())


def test_what_is_no_open_wal_is_refused(tmp_path: Path) -> None:
    database = written(tmp_path / "a.db")
    with pytest.raises(ValueError, match="no address"):
        _core.sync_file(0)
    database.close()
    with pytest.raises(apsw.ConnectionClosedError):
        wal_file(database)


class DeafWorker(Worker):
    """Its syncs are never told of."""

    asked: asyncio.Event

    def sync(self, file: int, outcome: Outcome) -> None:
        self.asked.set()


def test_a_log_can_be_closed_whose_sync_was_under_way(tmp_path: Path) -> None:
    async def check() -> None:
        log = LogStore(str(tmp_path / "raft.db"), IDENTITY, CODEC)
        log.recover()
        loop = asyncio.get_running_loop()
        failures: list[BaseException] = []
        worker = DeafWorker(loop, "test")
        worker.asked = asyncio.Event()
        engine = Engine(loop, log, boot=b"", worker=worker, on_failure=failures.append)
        engine.with_log(lambda log: log.notes.note_level(1))
        async with asyncio.timeout(10):
            await worker.asked.wait()
        with pytest.raises(StoreInUse):
            log.close()
        engine.close()
        log.close()
        assert failures == []
        LogStore(str(tmp_path / "raft.db"), IDENTITY, CODEC).close()

    asyncio.run(check())
