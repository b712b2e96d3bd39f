"""The archiver by itself: what no list of errors foresees is waited out as well."""

import asyncio

from context_node.archive.archiver import Archiver, ArchiverOptions
from context_node.archive.rows import ArchivedContext, ArchivedMessage
from context_node.runtime.shards import ShardDirectory


class Moody:
    """An archive that fails twice in a way that nobody thought of."""

    def __init__(self) -> None:
        self.opened = 0
        self.is_closed = False

    async def open(self, _cluster_id: str) -> str:
        self.opened += 1
        if self.opened <= 2:
            raise ZeroDivisionError("secret contents")
        return "a" * 32

    async def close(self) -> None:
        self.is_closed = True

    async def ping(self) -> None:
        pass

    async def write(self, _shard: int, _term: int, _messages: list[ArchivedMessage], _contexts: list[ArchivedContext]) -> None:
        raise AssertionError("there is nothing to write")

    async def write_policies(self, _shard: int, _term: int, _policies: list[tuple[str, int, bytes]]) -> None:
        raise AssertionError("there are none")

    async def erase(self, _shard: int, _term: int, _contexts: list[tuple[str, int]]) -> None:
        raise AssertionError("there is nothing to erase")


def test_an_unexpected_error_makes_the_archive_late_and_nothing_else() -> None:
    async def check() -> None:
        archive, shards = Moody(), ShardDirectory(1)
        shards.open({})
        archiver = Archiver(
            shards, archive, ArchiverOptions(flush_s=0.01), cluster_id=lambda: "c" * 32, now_ms=lambda: 0, jitter=lambda: 0.0
        )
        running = asyncio.create_task(archiver.run())
        async with asyncio.timeout(30):
            while not archiver.counters.is_healthy:
                assert not running.done()
                assert "secret" not in archiver.counters.reason
                await asyncio.sleep(0.01)
        assert archiver.counters.failures == {"unexpected": 2}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert archive.is_closed

    asyncio.run(check())
