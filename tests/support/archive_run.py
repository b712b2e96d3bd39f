"""A storm of kills on a cluster that archives: the node that leads most dies again and again in the middle of copying, under load.

Knows the machines of `chaos_run`, HTTP and the archive's documented tables. Does not know the inside of a node. While clients append, a
checker looks into Postgres all the time: a context's rows are 1, 2, 3, … to their end at every moment, its mark never is above them and
never goes back, and what a node says to be archived is there. At the end every row equals the export byte for byte, and every acknowledged
message is where its answer said. Invariants as in `chaos_run`.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg  # type: ignore[import-untyped]
import msgspec

from support.archive_compare import Differs, compare_context
from support.chaos_run import REQUEST_TIMEOUT_S, ChaosRun

WRITERS = 6
CONTEXTS = 24
BATCH_MAX = 12
ARCHIVED_BETWEEN_KILLS = 200
DEADLINE_S = 120.0
CHECK_EVERY_S = 0.05
SETTINGS = ["--archive-flush-s", "0.05", "--archive-batch-messages", "50"]

LOOK = """
SELECT context_id, incarnation, coalesce(rows, 0), coalesce(first, 0), coalesce(last, 0), coalesce(archived_seq, 0)
FROM (
    SELECT context_id, incarnation, count(*) AS rows, min(seq) AS first, max(seq) AS last FROM contextstore.messages GROUP BY 1, 2
) AS held FULL JOIN contextstore.contexts USING (context_id, incarnation)
"""


@dataclass
class ArchiveReport:
    """What a storm showed. `transactions`: those that wrote messages. `behind_max`: most messages that were acknowledged and not archived
    when a node was killed."""

    kills: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    rows: int = 0
    transactions: int = 0
    checks: int = 0
    behind_max: int = 0
    caught_up_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acknowledged:,} messages acknowledged ({self.unanswered:,} tries without an answer), "
            f"{self.rows:,} rows in {self.transactions:,} transactions, at most {self.behind_max:,} behind at a kill, "
            f"all there {self.caught_up_s:.1f} s after the last write, {self.checks:,} checks; {len(self.violations)} violations"
        )


class ArchiveRun(ChaosRun):
    """See the module's docstring. `dsn` is the URI of an empty database."""

    def __init__(self, folder: Path, dsn: str, *, seed: int, tail_keep: int | None = None) -> None:
        super().__init__(folder, nodes=3, seed=seed)
        self._dsn = dsn
        for machine in self.machines:
            machine.settings = SETTINGS + ([] if tail_keep is None else ["--archive-tail-keep", str(tail_keep)])
            machine.environment = {"CONTEXTSTORE_ARCHIVE_POSTGRES": dsn}
        self.stormed = ArchiveReport()
        self._kept: dict[str, dict[int, str]] = defaultdict(dict)
        """Of every context, the id of each acknowledged message by its seq."""
        self._checker: asyncio.Task[None] | None = None
        self._in_archive = 0
        self._marks: dict[tuple[str, int], int] = {}

    async def storm(self, kills: int, tell: Callable[[str], None] = lambda _text: None) -> ArchiveReport:
        """Raises AssertionError if the cluster, or the archive, does not come back by itself."""
        report = self.stormed
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as session:
            self._session = session
            clients: list[asyncio.Task[None]] = []
            try:
                for machine in self.machines:
                    await machine.start()
                await self._settled()
                await self._has_schema()
                clients = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
                self._checker = asyncio.create_task(self._check())
                for number in range(1, kills + 1):
                    await self._kill_who_archives()
                    if number % 10 == 0 or number == kills:
                        tell(f"{number} kills, {report.acknowledged:,} messages, {len(report.violations)} violations")
                self._stop.set()
                await asyncio.gather(*clients)
                began = time.monotonic()
                await self._all_archived()
                report.caught_up_s = time.monotonic() - began
                await self._end_checker()
                await self._compare()
                _, differing = await self._compare_replicas()
                report.violations += [f"the replicas of shard {shard} differ: {found}" for shard, found in differing]
            finally:
                self._stop.set()
                for machine in self.machines:
                    await machine.kill()
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)
                with suppress(Exception):
                    await self._end_checker()
        return report

    # --- load and faults ---------------------------------------------------------------------------------------------------

    async def _write(self, writer: int) -> None:
        """Batches with message ids, each tried until it is acknowledged."""
        chosen = random.Random(writer)
        number = 0
        while not self._stop.is_set():
            number += 1
            context = f"c{chosen.randrange(CONTEXTS)}"
            ids = [f"w{writer}-{number}-{place}" for place in range(chosen.randint(1, BATCH_MAX))]
            body = {"messages": [{"role": "user", "content": f"{name}: {'words ' * chosen.randrange(100)}", "id": name} for name in ids]}
            first = await self._acknowledged_at(context, body, chosen)
            for place, name in enumerate(ids):
                self._kept[context][first + place] = name
            self.stormed.acknowledged += len(ids)

    async def _acknowledged_at(self, context: str, body: object, chosen: random.Random) -> int:
        """The first seq of a batch, once it was acknowledged: also when the storm is over meanwhile, so that its outcome is known."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            url = f"{chosen.choice(self.machines).url}/v1/contexts/{context}/messages?create=true"
            try:
                async with self._session.post(url, json=body) as answer:
                    value = await answer.json()
                    if answer.status == 201:
                        return int(value["first_seq"])
                    if answer.status < 500 and answer.status != 429:
                        raise AssertionError(f"an append was answered {answer.status}: {value}")
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                self.stormed.unanswered += 1
            await asyncio.sleep(0.02)
        raise AssertionError(f"an append was not acknowledged within {DEADLINE_S:g} s")

    async def _kill_who_archives(self) -> None:
        """Once the archive has grown since the last kill, at any moment of its work."""
        goal, until = self._in_archive + ARCHIVED_BETWEEN_KILLS, time.monotonic() + DEADLINE_S
        while self._in_archive < goal:
            self._look_at_checker()
            assert time.monotonic() < until, f"the archive stands still at {self._in_archive} messages"
            await asyncio.sleep(0.01)
        await asyncio.sleep(self._random.uniform(0.0, 0.1))
        view = await self._look_at_cluster()
        most = max(view["nodes"], key=lambda node: node["leaders"])
        victim = next(machine for machine in self.machines if machine.name == most["name"])
        await victim.kill()
        self.stormed.kills += 1
        self.stormed.behind_max = max(self.stormed.behind_max, self.stormed.acknowledged - self._in_archive)
        await asyncio.sleep(self._random.uniform(0.0, 2.0))
        await victim.start(self._someone_else(victim).peer)
        await self._settled()

    async def _has_schema(self) -> None:
        """Until a node has made the tables."""
        connection = await asyncpg.connect(self._dsn)
        until = time.monotonic() + DEADLINE_S
        try:
            while await connection.fetchval("SELECT to_regclass('contextstore.messages')") is None:
                assert time.monotonic() < until, "no node reached the archive"
                await asyncio.sleep(0.05)
        finally:
            await connection.close()

    # --- looking into Postgres -----------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            while True:
                said = await self._said_archived()
                held: dict[str, int] = {}
                # One statement sees one moment.
                for context, incarnation, rows, first, last, mark in await connection.fetch(LOOK):
                    where = f"{context} of incarnation {incarnation}"
                    if rows and (first != 1 or last != rows):
                        self._violated(f"a hole in {where}: {rows} rows from {first} to {last}")
                    if mark > last:
                        self._violated(f"the mark of {where} is {mark}, and rows end at {last}")
                    if mark < self._marks.get((context, incarnation), 0):
                        self._violated(f"the mark of {where} went back to {mark}")
                    self._marks[context, incarnation] = mark
                    held[context] = rows
                for context, seq in said.items():
                    if held.get(context, 0) < seq:
                        self._violated(f"a node says that {context} is archived up to {seq}, and {held.get(context, 0)} rows are there")
                self._in_archive = sum(held.values())
                self.stormed.checks += 1
                await asyncio.sleep(CHECK_EVERY_S)
        finally:
            await connection.close()

    def _look_at_checker(self) -> None:
        """Raises what ended it."""
        if self._checker is not None and self._checker.done():
            self._checker.result()

    async def _end_checker(self) -> None:
        self._look_at_checker()
        if self._checker is not None:
            self._checker.cancel()
            await asyncio.gather(self._checker, return_exceptions=True)
            self._checker = None

    def _violated(self, what: str) -> None:
        self.stormed.violations.append(what)

    async def _said_archived(self) -> dict[str, int]:
        """What a node says of some context; asked before Postgres is."""
        context = f"c{self._random.randrange(CONTEXTS)}"
        try:
            async with self._session.get(f"{self._random.choice(self.machines).url}/v1/contexts/{context}?consistency=local") as answer:
                return {context: (await answer.json())["archived_seq"]} if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return {}

    # --- the end -------------------------------------------------------------------------------------------------------------

    async def _all_archived(self) -> None:
        until = time.monotonic() + DEADLINE_S
        late: dict[str, Any] = {}
        while time.monotonic() < until:
            views = {context: await self._context(context) for context in self._kept}
            late = {context: view for context, view in views.items() if view.get("archived_seq") != view.get("last_seq", -1)}
            if not late:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"not archived within {DEADLINE_S:g} s: {late}")

    async def _context(self, context: str) -> dict[str, Any]:
        try:
            async with self._session.get(f"{self._random.choice(self.machines).url}/v1/contexts/{context}") as answer:
                value: dict[str, Any] = await answer.json()
                return value if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return {}

    async def _compare(self) -> None:
        """Every context: rows beside the export, byte for byte, and every acknowledged message in its place, once."""
        connection = await asyncpg.connect(self._dsn)
        try:
            counts = await connection.fetchrow("SELECT count(*), count(DISTINCT xmin::text) FROM contextstore.messages")
            self.stormed.rows, self.stormed.transactions = counts
            for context, kept in self._kept.items():
                await self._compare_context(connection, context, kept)
        finally:
            await connection.close()

    async def _compare_context(self, connection: Any, context: str, kept: dict[int, str]) -> None:
        seen: set[str] = set()

        def see(seq: int, line: bytes) -> None:
            name = msgspec.json.decode(line)["id"]
            if name in seen or kept.get(seq, name) != name:
                self._violated(f"message {name} of {context} is doubled, or is at {seq} and {kept.get(seq)} was acknowledged there")
            seen.add(name)

        try:
            count = await compare_context(connection, self.machines[0].url, context, see)
        except Differs as error:
            self._violated(str(error))
            return
        if kept.keys() != set(range(1, count + 1)):
            # Every batch was tried until it was acknowledged, so that all that is there is known.
            self._violated(f"{context} has {count} messages, and {len(kept)} were acknowledged, up to {max(kept)}")
