"""Whole nodes on a disk that loses power, and the oracle that says what may have become of their data.

A `Fleet` is one data directory through several lives. Its clients append under ids and keys, rewrite, pin and purge, and remember every
answer. Judges of each life: what was acknowledged is there, at its seq, once, and a retry of whatever was not ends with one copy (H1, H2,
H4); a window that was seen at a version is the same in every later life (W5); the recovered state equals, row for row, a state machine
that applied the same entries without interruption (`EntryTape`).

Knows `Node` and its replicas. Invariant: with the same seed the same things happen, since nothing runs in a thread or waits.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import apsw

from context_node.contexts.refusals import ContextNotFound, Refusal
from context_node.contexts.requests import Append, Compact, PatchMetadata, PolicyChoice, PutContext, PutPolicy
from context_node.runtime.databases import StorageError, Synchronous
from context_node.runtime.engine import Engine
from context_node.runtime.log_file import LogOptions
from context_node.runtime.node import NodeOptions
from context_node.runtime.service import Service
from context_node.runtime.state_store import StateOptions
from context_node.runtime.upkeep import UpkeepLimits
from support.entry_tape import EntryTape
from support.power_cut_vfs import PowerCutDisk
from support.running_nodes import Clock, NodeLife, history, message
from support.virtual_time import InlineWorker, UnsyncedWorker, run_virtually

CLIENTS = 4
SHARDS = 3
WILD = ("wild-0", "wild-1", "wild-2")
UPKEEP = UpkeepLimits(
    flush_age_s=0.002,
    flush_bytes=4_000,
    wal_bytes_max=60_000,
    log_bytes_per_shard_max=12_000,
    log_bytes_max=24_000,
    scrub_after_s=0.05,
    interval_s=0.003,
)


@dataclass
class Figures:
    """What a run of fleets shows."""

    cuts: int = 0
    cuts_in_starts: int = 0
    lives: int = 0
    acknowledged: int = 0
    retried: int = 0
    lost: int = 0
    doubled: int = 0
    log_syncs: int = 0
    log_commits: int = 0
    batch_records: int = 0
    windows_compared: int = 0
    states_compared: int = 0

    def __str__(self) -> str:
        per_batch = self.log_syncs / max(1, self.log_commits)
        return (
            f"{self.cuts} power cuts ({self.cuts_in_starts} of them during a start) in {self.lives} lives: "
            f"{self.acknowledged} writes acknowledged, {self.lost} lost, {self.doubled} doubled, {self.retried} retried; "
            f"{self.windows_compared} windows and {self.states_compared} shard states compared; "
            f"{per_batch:.2f} fsyncs of the log per acknowledged batch of {self.batch_records / max(1, self.log_commits):.1f} records"
        )


class Broken(AssertionError):
    """A promise was broken; says which."""


@dataclass
class Client:
    """One writer of its own context: what it sent, what was answered, and what it must ask again."""

    name: str
    acknowledged: dict[str, int] = field(default_factory=dict)
    unsure: list[Append] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    number: int = 0

    def next_request(self, rng: random.Random) -> Append:
        texts = []
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            self.number += 1
            texts.append(f"{self.name} {self.number} " + "word " * rng.choice((0, 3, 30)))
        self.sent.update(texts)
        is_batch = len(texts) > 1
        if rng.random() < 0.5:
            messages = [message(text, rng.choice(("user", "assistant"))) for text in texts]
            return Append(messages, batch=is_batch, create=True, key=f"key-{self.number}")
        return Append([message(text, id=text.strip()) for text in texts], batch=is_batch, create=True)

    async def send(self, service: Service, request: Append) -> None:
        """Raises what the node raises; then the request is unsure."""
        self.unsure.append(request)
        reply = await service.append(self.name, request)
        self.unsure.remove(request)
        texts = [each.parts[0]["text"] for each in request.messages]
        for seq, text in enumerate(texts, reply.first_seq):
            if self.acknowledged.setdefault(text, seq) != seq:
                raise Broken(f"{text!r} was at {self.acknowledged[text]} and is at {seq} (H4)")


class Fleet:
    """See the module's docstring."""

    def __init__(self, seed: int, figures: Figures, log: Synchronous = "FULL", state: Synchronous = "NORMAL") -> None:
        self.rng = random.Random(seed)
        self.figures = figures
        self.disk = PowerCutDisk()
        self.tape = EntryTape()
        self.clock = Clock()
        self.clients = [Client(f"client-{number}") for number in range(CLIENTS)]
        self.windows: dict[tuple[str, int], bytes] = {}
        self.fatal: list[BaseException] = []
        self._fail_sync_after: int | None = None
        self.options = NodeOptions(
            "data",
            shards=SHARDS,
            upkeep=UPKEEP,
            log=LogOptions(wal_bytes_max=60_000, synchronous=log),
            state=StateOptions(exclusive=True, synchronous=state),
        )

    async def live(self, cut_at: int | None, writes: int, *, fail_sync_after: int | None = None) -> bool:
        """One life: recover, judge, write. Returns whether the power was cut in it.

        `fail_sync_after`: from then on, in writes of each client, the next sync fails.
        """
        self.disk.cut_at = cut_at
        self.figures.lives += 1
        engine: Engine | None = None
        syncs_before = commits_before = records_before = 0
        make_worker = InlineWorker if self.options.log.synchronous == "FULL" else UnsyncedWorker
        node = NodeLife(replace(self.options, disk=self.disk), clock=self.clock, random_bytes=self.rng.randbytes, make_worker=make_worker)
        try:
            self.fatal = node.fatal
            self._fail_sync_after = fail_sync_after
            with self.tape.running():
                await node.start()
                await self._judge(node)
                engine, syncs_before = node.engine, self._log_syncs()
                commits_before, records_before = engine.counters.commits, engine.counters.batch_records
                async with asyncio.TaskGroup() as tasks:
                    for client in self.clients:
                        tasks.create_task(self._write(node, client, writes))
                    tasks.create_task(self._run_wild(node, writes))
                if not node.fatal and self.rng.random() < 0.3:
                    await node.node.stop()  # the power may go in the middle of it
        except (Refusal, StorageError, apsw.Error):
            if self.disk.has_power:
                raise
        finally:
            await node.kill()
        if engine is None:
            self.figures.cuts_in_starts += not self.disk.has_power
        else:
            self.figures.log_commits += engine.counters.commits - commits_before
            self.figures.batch_records += engine.counters.batch_records - records_before
            self.figures.log_syncs += self._log_syncs() - syncs_before
        return not self.disk.has_power

    def _log_syncs(self) -> int:
        return sum(count for name, count in self.disk.syncs.items() if name.startswith("data/log.db"))

    def lose_power(self) -> None:
        """The disk as the next life finds it."""
        self.figures.cuts += 1
        before, self.disk = self.disk, self.disk.after_power_cut(self.rng)
        before.close()

    def lose_process(self) -> None:
        """As if only the process had died."""
        before, self.disk = self.disk, self.disk.after_process_kill()
        before.close()

    # --- clients -----------------------------------------------------------------------------------------------------

    async def _write(self, node: NodeLife, client: Client, writes: int) -> None:
        for number in range(writes):
            if number == self._fail_sync_after:
                self.disk.failing_syncs, self._fail_sync_after = 1, None
            await self._watched(node, lambda: self._send(node.service, client))
            if self.rng.random() < 0.3:
                await self._watched(node, lambda: self._see(node.service, client.name))
            if not self.disk.has_power or node.fatal:
                return

    async def _send(self, service: Service, client: Client) -> None:
        await client.send(service, client.next_request(self.rng))
        self.figures.acknowledged += 1

    async def _run_wild(self, node: NodeLife, writes: int) -> None:
        """Everything else that changes contexts. Whether it happened is for the tape to say."""
        for _ in range(writes):
            await self._watched(node, lambda: wild(node.service, self.rng))
            if not self.disk.has_power or node.fatal:
                return

    async def _watched(self, node: NodeLife, work: Callable[[], Awaitable[None]]) -> None:
        """Refusals and errors are only for a node that lost its disk."""
        try:
            await work()
        except (Refusal, StorageError, apsw.Error):
            if self.disk.has_power and not node.fatal:
                raise

    async def _see(self, service: Service, context_id: str) -> None:
        """W5: a window at a version is the same whenever it is read."""
        answer = await service.window(context_id, None, None, None)
        assert answer.body is not None
        if self.windows.setdefault((context_id, answer.version), answer.body) != answer.body:
            raise Broken(f"the window of {context_id} at version {answer.version} changed (W5)")
        self.figures.windows_compared += 1

    # --- the judges --------------------------------------------------------------------------------------------------

    async def _judge(self, node: NodeLife) -> None:
        for client in self.clients:
            if client.sent:
                await self._judge_client(node.service, client)
        for shard, replica in node.engine.replicas.items():
            replica.flush()
            self.figures.states_compared += 1
            if replica.store.digest() != self.tape.digest(shard, replica.applied_index):
                raise Broken(f"shard {shard} is not what its entries make (W5)")

    async def _judge_client(self, service: Service, client: Client) -> None:
        self._compare(client, await present(service, client.name))
        for request in list(client.unsure):
            client.unsure.remove(request)
            await client.send(service, request)
            self.figures.retried += 1
        found = await present(service, client.name)
        self._compare(client, found)
        if set(found) != client.sent:
            raise Broken(f"{client.name} sent {len(client.sent)} messages and finds {len(found)}")
        await self._see(service, client.name)

    def _compare(self, client: Client, found: dict[str, list[int]]) -> None:
        self.figures.doubled += sum(len(seqs) - 1 for seqs in found.values())
        self.figures.lost += sum(seq not in found.get(text, ()) for text, seq in client.acknowledged.items())
        if any(len(seqs) > 1 for seqs in found.values()):
            raise Broken(f"{client.name} finds messages twice (H4)")
        if any(found.get(text) != [seq] for text, seq in client.acknowledged.items()):
            raise Broken(f"{client.name} does not find what was acknowledged (H1)")
        if not set(found) <= client.sent:
            raise Broken(f"{client.name} finds what it never sent")


async def present(service: Service, context_id: str) -> dict[str, list[int]]:
    """The seqs of each text in a context's history; that they are contiguous is checked here (H2)."""
    try:
        messages = await history(service, context_id)
    except ContextNotFound:
        return {}
    if [one["seq"] for one in messages] != list(range(1, len(messages) + 1)):
        raise Broken(f"the seqs of {context_id} are not contiguous (H2)")
    found: dict[str, list[int]] = {}
    for one in messages:
        found.setdefault(one["parts"][0]["text"], []).append(one["seq"])
    return found


async def wild(service: Service, rng: random.Random) -> Any:
    """One change of any kind to one of a few contexts: the answer, or the code of a refusal that depends on their state."""
    context_id = rng.choice(WILD)
    seq = rng.randint(1, 6)
    short = message("short", "assistant")
    moves: list[Callable[[], Awaitable[Any]]] = [
        lambda: service.put_context(context_id, PutContext(token_budget=rng.choice((60, 200, 8000)), metadata={"n": rng.randint(0, 3)})),
        lambda: service.put_context(context_id, PutContext(policy=PolicyChoice(ref="p"))),
        lambda: service.patch_metadata(context_id, PatchMetadata({"k": rng.randint(0, 9)}, key=f"patch-{rng.randint(0, 5)}")),
        lambda: service.compact(context_id, Compact([short], covers=(seq, seq + rng.randint(0, 3)))),
        lambda: service.compact(context_id, Compact(rebuild=True)),
        lambda: service.compact(context_id, Compact([short])),
        lambda: service.pin(context_id, seq, rng.random() < 0.7),
        lambda: service.delete_context(context_id),
        lambda: service.purge_context(context_id),
        lambda: service.put_policy("p", PutPolicy("last_n", {"limit": rng.randint(1, 6)})),
    ]
    appends: list[Callable[[], Awaitable[Any]]] = [
        lambda: service.append(context_id, Append([message("word " * rng.randint(1, 20))], create=True, key=f"k{rng.randint(0, 9)}")),
        lambda: service.append(
            context_id, Append([message(f"pair {rng.random()}"), message("and its other half", "assistant")], create=True, batch=True)
        ),
    ]
    expected = {"unavailable", "outcome_unknown", "overloaded"}
    try:
        return await rng.choice(moves + appends * 6)()
    except Refusal as refusal:
        if refusal.code in expected:
            raise
        return refusal.code


def seeds_that_break(seeds: range, *, log: Synchronous, state: Synchronous) -> int:
    """How many of the seeds show a loss, a damage or a double when files are not synced as they should be."""
    broken = 0
    for seed in seeds:
        try:
            power_cuts(range(seed, seed + 1), Figures(), log=log, state=state)
        except Exception:  # whatever way it breaks in: a wrong answer, a damaged file, a refused start
            broken += 1
    return broken


def power_cuts(
    seeds: range, figures: Figures, *, log: Synchronous = "FULL", state: Synchronous = "NORMAL", lives: int = 4, writes: int = 40
) -> None:
    """Run a fleet for each seed, cutting its power in every life but the last. Raises `Broken` naming the seed."""
    for seed in seeds:
        fleet = Fleet(seed, figures, log, state)
        try:
            run_virtually(_lives(fleet, lives, writes))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            fleet.disk.close()


async def _lives(fleet: Fleet, lives: int, writes: int) -> None:
    for _ in range(lives - 1):
        # From the middle of the very first commit to far into the load; often while starting or catching up.
        cut_at = fleet.rng.randint(1, fleet.rng.choice((150, 600, 3000)))
        if await fleet.live(cut_at, writes) or fleet.rng.random() < 0.7:
            fleet.lose_power()
        else:
            fleet.lose_process()
    await fleet.live(None, writes)
    fleet.lose_power()
    if await fleet.live(None, 0):
        raise AssertionError("nobody cut the power")
