"""The archiver by itself: what no list of errors foresees is waited out as well."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from context_node.archive import archiver as archiving
from context_node.archive.archiver import BATCHES_AT_ONCE, Archiver, ArchiverOptions
from context_node.archive.backlog import Backlog
from context_node.archive.copying import Led, Turn
from context_node.archive.errors import ArchiveError
from context_node.archive.rows import ArchivedContext, ArchivedMessage
from context_node.contexts.machine import Event
from context_node.runtime.shards import ShardDirectory
from support.waiting import until


class Moody:
    """An archive that fails so often in a way that nobody thought of."""

    def __init__(self, failures: int = 2) -> None:
        self.failures = failures
        self.opened = 0
        self.is_closed = False

    async def open(self, _cluster_id: str) -> str:
        self.opened += 1
        if self.opened <= self.failures:
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


class Waiting:
    """A copier for which so many batches of each shard wait, all of the same size."""

    def __init__(self, batches: dict[int, int]) -> None:
        self.turns: list[int] = []
        self._batches = batches

    async def turn(self, replica: Any, _led: Any) -> Turn:
        self.turns.append(replica.shard)
        self._batches[replica.shard] -= 1
        return Turn(has_written=True, has_more=self._batches[replica.shard] > 0)


def led_replica(shard: int) -> Any:
    return SimpleNamespace(
        shard=shard,
        leads=True,
        applied_term=1,
        group=SimpleNamespace(term=1),
        machine=SimpleNamespace(contexts={}),
        store=SimpleNamespace(list_contexts=lambda **_asked: []),
    )


@pytest.mark.parametrize("waiting", [BATCHES_AT_ONCE, BATCHES_AT_ONCE + 2])
def test_a_shard_with_more_goes_on_by_itself_and_hurries_the_others_only_if_it_is_far_behind(
    monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    monkeypatch.setattr(archiving, "SPREAD_MAX_S", 0.05)

    async def check() -> None:
        batches = {0: 1, 1: waiting, 2: 1}
        shards, copier = ShardDirectory(3), Waiting(batches)
        shards.open({shard: led_replica(shard) for shard in batches})
        # A second round by the clock would not come.
        options = ArchiverOptions(flush_s=3600)
        archiver = Archiver(shards, Moody(failures=0), options, cluster_id=lambda: "c" * 32, now_ms=lambda: 0, jitter=lambda: 0.0)
        archiver._copier = copier  # type: ignore[assignment]
        running = asyncio.create_task(archiver.run())
        async with asyncio.timeout(30):
            while batches[1] > 0 or len(copier.turns) < waiting + 2:
                assert not running.done()
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        first = copier.turns[: BATCHES_AT_ONCE + 2]
        assert [first.count(shard) for shard in (0, 1, 2)] == [1, BATCHES_AT_ONCE, 1]
        assert copier.turns.count(1) == waiting

    asyncio.run(check())


def test_the_turns_of_a_round_are_spread_over_the_whole_flush_interval() -> None:
    """Not in a burst at its beginning, behind which everybody who writes would wait."""

    class Noting(Archiver):
        async def _turn(self, replica: Any, after_s: float) -> Turn:
            begun[replica.shard] = after_s
            return Turn()

    begun: dict[int, float] = {}

    async def check() -> None:
        options, shards = ArchiverOptions(), ShardDirectory(10)
        shards.open({shard: led_replica(shard) for shard in range(10)})
        archiver = Noting(shards, Moody(failures=0), options, cluster_id=lambda: "c" * 32, now_ms=lambda: 0, jitter=lambda: 0.0)
        running = asyncio.create_task(archiver.run())
        await until(lambda: len(begun) == 10, "all shards to have their turn")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [round(begun[shard], 6) for shard in range(10)] == [round(0.08 * shard * options.flush_s, 6) for shard in range(10)]

    asyncio.run(check())


def test_a_turn_that_fails_behind_a_good_batch_makes_its_shard_late_and_nothing_else() -> None:
    """What it wrote counts: the connection is good, and the others' turns go on."""

    class Failing(Waiting):
        has_failed = False

        async def turn(self, replica: Any, led: Any) -> Turn:
            if replica.shard == 1 and self.turns.count(1) == 1 and not self.has_failed:
                self.has_failed = True
                raise ArchiveError("disk_full", "no space")
            return await super().turn(replica, led)

    async def check() -> None:
        # No other shard has anything: that the archive was reached is known by what this one wrote.
        batches = {1: 3}
        shards, copier, archive = ShardDirectory(2), Failing(batches), Moody(failures=0)
        shards.open({shard: led_replica(shard) for shard in batches})
        options = ArchiverOptions(flush_s=0.01)
        archiver = Archiver(shards, archive, options, cluster_id=lambda: "c" * 32, now_ms=lambda: 0, jitter=lambda: 0.0)
        archiver._copier = copier  # type: ignore[assignment]
        running = asyncio.create_task(archiver.run())
        await until(lambda: archiver.counters.cause == "disk_full", "the failure to be told")
        assert archiver.counters.failures == {"disk_full": 1} and 1 in archiver._late
        await until(lambda: batches[1] <= 0 and not archiver._late, "the shard to be copied after all")
        assert archiver.counters.is_healthy and archive.opened == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(check())


def test_each_trouble_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards, each with a trouble of its own, try again and again: two lines. One whose trouble comes back has another line."""
    monkeypatch.setattr(archiving, "BACKOFF_MIN_S", 0.01)
    monkeypatch.setattr(archiving, "BACKOFF_MAX_S", 0.02)
    troubles = {1: "rows of shard 1 differ", 2: "rows of shard 2 differ"}
    failed = dict.fromkeys(troubles, 0)

    class Failing(Waiting):
        async def turn(self, replica: Any, _led: Any) -> Turn:
            if (trouble := troubles.get(replica.shard)) is not None:
                failed[replica.shard] += 1
                raise ArchiveError("differs", trouble)
            return Turn()

    def said() -> list[str]:
        return sorted(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)

    async def check() -> None:
        shards = ShardDirectory(3)
        shards.open({shard: led_replica(shard) for shard in (1, 2)})
        options = ArchiverOptions(flush_s=0.01)
        archiver = Archiver(shards, Moody(failures=0), options, cluster_id=lambda: "c" * 32, now_ms=lambda: 0, jitter=lambda: 0.0)
        archiver._copier = Failing({})  # type: ignore[assignment]
        running = asyncio.create_task(archiver.run())
        await until(lambda: min(failed.values()) >= 5, "both shards to have failed a few times")
        twice = [f"the archive is late: rows of shard {shard} differ" for shard in (1, 2)]
        assert said() == twice
        again = troubles.pop(1)
        await until(lambda: 1 not in archiver._late, "the trouble of shard 1 to be over")
        assert archiver.counters.cause == "differs", "that of shard 2 is not"
        troubles[1] = again
        await until(lambda: len(said()) == 3, "it to be told again")
        assert said() == sorted([*twice, twice[0]])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with caplog.at_level(logging.INFO, "contextstore.archive"):
        asyncio.run(check())


def test_a_hole_is_told_before_lateness() -> None:
    """What the archive lacks waits for ever, so that it is late as well some day; only the hole says what to do."""

    async def check() -> None:
        shards = ShardDirectory(1)
        shards.open({0: led_replica(0)})
        options = ArchiverOptions(lag_warn_bytes=100)
        archiver = Archiver(shards, Moody(failures=0), options, cluster_id=lambda: "c" * 32, now_ms=lambda: 0, jitter=lambda: 0.0)
        led = archiver._led[0] = Led(1, Backlog(lambda: 0, lambda _head, _epoch: True), is_scanned=True)
        led.behind.came("c", [bytes(101)])
        led.lost["c"] = None
        archiver._tell_if_late()
        archiver.counters.cause = ""
        assert archiver.health().is_late
        assert archiver.health().cause == "hole"
        led.lost.clear()
        assert archiver.health().cause == "late"

    asyncio.run(check())


def test_what_waits_is_told_while_it_is_looked_for_anew() -> None:
    """A shard whose archive has changed, or whose leader was another for a moment, does not seem to have everything archived."""

    async def check() -> None:
        told: list[int] = []

        def stored(**_asked: Any) -> list[Any]:
            archiver.note(replica, Event("message", "c", 1, (b"4",)))
            told.append(archiver.lag_messages)
            return []

        shards, replica = ShardDirectory(1), led_replica(0)
        shards.open({0: replica})
        archiver = Archiver(shards, Moody(failures=0), ArchiverOptions(), cluster_id=str, now_ms=lambda: 0, jitter=lambda: 0.0)
        await archiver._take_stock()
        archiver.note(replica, Event("message", "c", 1, (b"1", b"2", b"3")))
        archiver._led[0].is_over = True
        assert archiver.lag_messages == 3
        replica.store.list_contexts = stored
        await archiver._take_stock()
        assert told == [4]
        # Nothing more is there but what came meanwhile: the fourth message.
        assert archiver.lag_messages == 1

    asyncio.run(check())
