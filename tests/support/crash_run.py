"""Real processes under load, killed again and again, and a count of what was lost or doubled.

A `CrashRun` keeps one node process alive on one data directory, writes to it from several clients, kills it with SIGKILL at random moments
(also while it starts) and starts it again. Clients name each write by message ids or an idempotency key and send it again until it is
acknowledged. Checked: what was acknowledged is there, once, at the seq of the answer (H1, H4); seqs are contiguous (H2); contexts that
nobody writes to at the moment answer byte for byte what they answered before the kill (W5).

Knows the command line and HTTP from outside only. Invariant: a process that was started here is gone when `run` returns.
"""

import asyncio
import json
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from support.contextstore_process import COMMAND, clean_environment

CLIENTS = 8
CONTEXTS_PER_CLIENT = 3
QUIET_CONTEXTS = 12
LOAD_S_MAX = 0.7
STARTS_KILLED = 0.25
READY_DEADLINE_S = 60.0
FULL_CHECK_EVERY = 25

# Small limits, so that flushes, checkpoints and truncations are under way at most moments.
SETTINGS = {
    "CONTEXTSTORE_DIRTY_AGE_S_MAX": "0.05",
    "CONTEXTSTORE_SHARD_LOG_BYTES_MAX": str(256 << 10),
    "CONTEXTSTORE_NODE_LOG_BYTES_MAX": str(1 << 20),
    "CONTEXTSTORE_WAL_BYTES_MAX": str(1 << 20),
    "CONTEXTSTORE_DRAIN_S": "0",
}

Json = dict[str, Any]


@dataclass
class Tally:
    """What a run shows."""

    kills: int = 0
    kills_while_starting: int = 0
    acknowledged: int = 0
    retries: int = 0
    lost: int = 0
    doubled: int = 0
    unknown: int = 0
    windows_compared: int = 0
    windows_changed: int = 0
    holes: int = 0
    start_s: list[float] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.unknown or self.windows_changed or self.holes)

    def __str__(self) -> str:
        starts = sorted(self.start_s)
        return (
            f"{self.kills} kills ({self.kills_while_starting} of them during a start): {self.acknowledged:,} messages acknowledged, "
            f"{self.lost} lost, {self.doubled} doubled, {self.unknown} never sent, {self.holes} holes in seqs, {self.retries:,} retries; "
            f"{self.windows_compared:,} windows compared, {self.windows_changed} changed; "
            f"restart until ready {starts[len(starts) // 2]:.2f} s in the middle, {starts[-1]:.2f} s at most"
        )


class CrashRun:
    """See the module's docstring. `run` once."""

    def __init__(self, data_dir: Path, *, seed: int, progress: Callable[[Tally], None] = lambda _tally: None) -> None:
        self.tally = Tally()
        self._data_dir = data_dir
        self._rng = random.Random(seed)
        self._progress = progress
        self._url = ""
        self._is_ready = asyncio.Event()
        self._is_over = False
        self._process: asyncio.subprocess.Process | None = None
        self._log = open(data_dir.parent / "node.log", "ab")  # noqa: SIM115 - closed when `run` ends
        self._acknowledged: dict[str, dict[str, int]] = {}
        self._numbers = 0

    async def run(self, kills: int) -> Tally:
        """Kill the node so many times, then look at everything, after a stop in order as well. The tally says what was found."""
        self._url = f"http://127.0.0.1:{_free_port()}"
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(self._url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
            try:
                await self._start(http)
                async with asyncio.TaskGroup() as tasks:
                    for client in range(CLIENTS):
                        tasks.create_task(self._write(http, f"client-{client}", random.Random(self._rng.random())))
                    await self._kill_again_and_again(http, kills)
                    self._is_over = True
                await self._check_all(http)
                before = await self._windows(http, [*self._acknowledged])
                await self._end(signal.SIGTERM)
                await self._start(http)
                self._compare(before, await self._windows(http, [*self._acknowledged]))
                await self._check_all(http)
                await self._end(signal.SIGTERM)
            finally:
                if self._process is not None and self._process.returncode is None:
                    await self._end(signal.SIGKILL)
                self._log.close()
        return self.tally

    async def _kill_again_and_again(self, http: aiohttp.ClientSession, kills: int) -> None:
        rng, tally = self._rng, self.tally
        quiet = [f"quiet-{number}" for number in range(QUIET_CONTEXTS)]
        while tally.kills < kills:
            for context_id in rng.sample(quiet, 4):
                await self._append(http, context_id, rng)
            before = await self._windows(http, [context_id for context_id in quiet if context_id in self._acknowledged])
            await asyncio.sleep(rng.uniform(0, LOAD_S_MAX))
            await self._end(signal.SIGKILL)
            while rng.random() < STARTS_KILLED:
                tally.kills_while_starting += 1
                await self._spawn()
                typical_s = sum(tally.start_s) / len(tally.start_s)
                await asyncio.sleep(rng.uniform(0.2, 1.1) * typical_s)
                await self._end(signal.SIGKILL)
            await self._start(http)
            self._compare(before, await self._windows(http, [*before]))
            if tally.kills % FULL_CHECK_EVERY == 0:
                await self._check_all(http)
            self._progress(tally)

    # --- the process -------------------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        port = self._url.rpartition(":")[2]
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("dev", "--port", port, "--data-dir", str(self._data_dir)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=clean_environment(**SETTINGS),
        )

    async def _start(self, http: aiohttp.ClientSession) -> None:
        started = time.perf_counter()
        await self._spawn()
        process = self._process
        assert process is not None
        while not await self._answers_ready(http):
            assert process.returncode is None, f"the node ended with {process.returncode}; see {self._log.name}"
            assert time.perf_counter() - started < READY_DEADLINE_S, "the node is not ready in time"
            await asyncio.sleep(0.005)
        self.tally.start_s.append(time.perf_counter() - started)
        self._is_ready.set()

    async def _answers_ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get("/health/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._is_ready.clear()
        self.tally.kills += number == signal.SIGKILL and not self._is_over
        if self._process.returncode is None:
            self._process.send_signal(number)
        code = await self._process.wait()
        if number == signal.SIGTERM:
            assert code == 0, f"a stop in order ended with {code}"

    # --- clients -----------------------------------------------------------------------------------------------------

    async def _write(self, http: aiohttp.ClientSession, name: str, rng: random.Random) -> None:
        while not self._is_over:
            await self._append(http, f"{name}.{rng.randrange(CONTEXTS_PER_CLIENT)}", rng)

    async def _append(self, http: aiohttp.ClientSession, context_id: str, rng: random.Random) -> None:
        """One write, sent again until it is acknowledged."""
        texts = []
        for _ in range(rng.choice((1, 1, 1, 3, 10))):
            self._numbers += 1
            texts.append(f"{context_id} {self._numbers} " + "some words " * rng.choice((0, 5, 40, 200)))
        messages: list[Json] = [{"role": rng.choice(("user", "assistant")), "parts": [{"type": "text", "text": text}]} for text in texts]
        headers = {}
        if rng.random() < 0.5:
            headers["Idempotency-Key"] = f"key-{self._numbers}"
        else:
            for message, text in zip(messages, texts, strict=True):
                message["id"] = text.split()[1]
        body = {"messages": messages} if len(messages) > 1 else {"message": messages[0]}
        answer = await self._until_acknowledged(http, f"/v1/contexts/{context_id}/messages?create=true", body, headers)
        known = self._acknowledged.setdefault(context_id, {})
        first_seq: int = answer["first_seq"] if len(texts) > 1 else answer["seq"]
        for seq, text in enumerate(texts, first_seq):
            known[text] = seq
        self.tally.acknowledged += len(texts)

    async def _until_acknowledged(self, http: aiohttp.ClientSession, path: str, body: Json, headers: dict[str, str]) -> Json:
        while True:
            await self._is_ready.wait()
            try:
                async with http.post(path, json=body, headers=headers) as response:
                    answer: Json = await response.json()
                    if response.status in (200, 201):
                        return answer
                    assert response.status == 503, answer
            except (aiohttp.ClientError, TimeoutError):
                pass  # it was killed while it had this request
            self.tally.retries += 1
            await asyncio.sleep(0.005)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _windows(self, http: aiohttp.ClientSession, context_ids: list[str]) -> dict[str, tuple[bytes, str]]:
        """Window and ETag of some contexts."""
        seen = {}
        for context_id in context_ids:
            async with http.get(f"/v1/contexts/{context_id}/context") as response:
                assert response.status == 200, await response.text()
                seen[context_id] = (await response.read(), response.headers["ETag"])
        return seen

    def _compare(self, before: dict[str, tuple[bytes, str]], after: dict[str, tuple[bytes, str]]) -> None:
        self.tally.windows_compared += len(before)
        self.tally.windows_changed += sum(after[context_id] != window for context_id, window in before.items())

    async def _check_all(self, http: aiohttp.ClientSession) -> None:
        """The whole history of every context against what was acknowledged. While clients write, they may be ahead of what is known."""
        tally = self.tally
        for context_id in [*self._acknowledged]:
            known = dict(self._acknowledged[context_id])
            async with http.get(f"/v1/contexts/{context_id}/export") as response:
                assert response.status == 200, await response.text()
                lines = [json.loads(line) for line in (await response.read()).splitlines()]
            tally.holes += [line["seq"] for line in lines] != list(range(1, len(lines) + 1))
            found: dict[str, list[int]] = {}
            for line in lines:
                found.setdefault(line["parts"][0]["text"], []).append(line["seq"])
            tally.doubled += sum(len(seqs) - 1 for seqs in found.values())
            tally.lost += sum(found.get(text) != [seq] for text, seq in known.items() if len(found.get(text, [])) < 2)
            if self._is_over:
                tally.unknown += len(found.keys() - known.keys())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
