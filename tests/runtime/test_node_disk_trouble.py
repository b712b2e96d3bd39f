"""P10, S2: a full disk is refused and waited for, a failed sync ends the node; neither loses what was acknowledged."""

import asyncio
import http.client
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from context_node.contexts.refusals import OutcomeUnknown, Overloaded, Refusal, Unavailable
from context_node.contexts.requests import Append, PutContext, PutPolicy
from context_node.runtime.databases import DiskFull, StorageFailed
from context_node.runtime.node import PROBE_BYTES
from context_node.runtime.state_store import StateOptions
from support.contextstore_process import clean_environment, running_node
from support.node_lives import Figures, Fleet
from support.power_cut_vfs import PowerCutDisk
from support.running_nodes import BY_HAND, EAGER, NodeLife, append, everything, history, life, list_ids, message, options, run, texts_of
from support.virtual_time import InlineWorker, run_virtually
from support.waiting import until, wait_until

LEFT_BYTES = 3 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(directory)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> None:
    """Leave so much space that a node can write for a while, and none for its probe: the file `ballast` takes the rest."""
    assert LEFT_BYTES < PROBE_BYTES
    state = os.statvfs(directory)
    (directory / "ballast").write_bytes(bytes(state.f_bavail * state.f_frsize - LEFT_BYTES))


class Writer:
    """Appends large messages under ids, and knows which were acknowledged."""

    def __init__(self, node: NodeLife) -> None:
        self.node = node
        self.acknowledged: list[str] = []
        self.requests: dict[str, Append] = {}

    async def write(self, count: int, size: int = 30_000) -> Refusal | None:
        """Append until refused; the refusal, or None after `count` messages."""
        for number in range(len(self.requests), len(self.requests) + count):
            name = f"m{number}"
            self.requests[name] = Append([message(f"{name} " + "word " * (size // 5), id=name)], create=True)
            try:
                await self.append(self.requests[name])
            except Refusal as refusal:
                return refusal
            self.acknowledged.append(name)
        return None

    async def append(self, request: Append) -> None:
        """Patient with a node that is only busy."""
        while True:
            try:
                await self.node.service.append("c", request)
                return
            except Overloaded:
                await asyncio.sleep(0.001)

    async def retry(self) -> None:
        """Send everything again."""
        for name, request in self.requests.items():
            await self.append(request)
            if name not in self.acknowledged:
                self.acknowledged.append(name)

    async def check(self) -> None:
        names = [text.split()[0] for text in texts_of(await history(self.node.service, "c"))]
        assert len(set(names)) == len(names), "nothing twice (H4)"
        assert names == sorted(names, key=lambda name: int(name[1:]))
        assert set(self.acknowledged) <= set(names) <= set(self.requests), "nothing acknowledged is missing (H1)"


@pytest.mark.needs_tmpfs
def test_p10_a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself(small_disk: Path) -> None:
    """P10, H1, H4: 503 while the disk is full, nothing acknowledged that was not kept, no restart needed when there is space."""

    async def check() -> None:
        node = await life(small_disk / "data", upkeep=EAGER, retry_full_disk_s=0.02).start()
        writer = Writer(node)
        await node.service.put_context("other", PutContext())
        for _ in range(4):
            fill(small_disk)
            first = await writer.write(100_000)
            assert isinstance(first, Unavailable | OutcomeUnknown), first
            window = await node.service.window("c", None, None, None)
            for _ in range(5):
                with pytest.raises(Unavailable):
                    await append(node.service, "c", "refused")
                with pytest.raises(Unavailable):
                    await node.service.put_policy("p", PutPolicy("manual"))
            ready, reason = node.service.ready()
            assert not ready and "disk is full" in reason
            assert len(await history(node.service, "c", limit=5)) >= len(writer.acknowledged)
            assert (await node.service.get_context("other")).last_seq == 0
            assert (await node.service.window("c", None, None, None)).version == window.version
            restarts = node.node.restarts
            (small_disk / "ballast").unlink()
            await until(lambda before=restarts: node.node.restarts > before and node.service.ready()[0], "the node to recover")
            await writer.check()
            await writer.retry()
            await writer.check()
        await writer.write(20)
        seen = await everything(node.service)
        await node.restart(hard=True)
        assert await everything(node.service) == seen
        await writer.check()
        await node.stop()

    run(check())


@pytest.mark.needs_tmpfs
def test_a_node_that_starts_on_a_full_disk_says_so_and_loses_nothing(small_disk: Path) -> None:
    async def check() -> None:
        node = await life(small_disk / "data", upkeep=BY_HAND).start()
        writer = Writer(node)
        await writer.write(20)
        await node.kill()
        filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(filler, bytes(1 << 16))
        os.close(filler)
        full = life(small_disk / "data", upkeep=BY_HAND)
        with pytest.raises((DiskFull, StorageFailed)):
            await full.start()
            # The start itself may still fit; what comes then does not.
            await full.node.stop()
            raise DiskFull("", "", "")
        (small_disk / "filler").unlink()
        await node.start()
        await writer.check()
        await node.stop()

    run(check())


def test_p10_a_state_database_on_a_full_disk_stops_writes_and_goes_on_when_there_is_space() -> None:
    """The log could still be written, but what is applied could not leave memory any more."""

    async def check() -> None:
        disk = PowerCutDisk()
        node = NodeLife(
            options("data", shards=1, disk=disk, state=StateOptions(exclusive=True), upkeep=EAGER, retry_full_disk_s=0.02),
            make_worker=InlineWorker,
        )
        await node.start()
        writer = Writer(node)
        await writer.write(10)
        used = sum(len(inode.cached) for inode in disk.names.values())
        disk.space_bytes = used + 50_000
        assert isinstance(await writer.write(1_000), Unavailable | OutcomeUnknown)
        assert (await node.service.window("c", None, None, None)).version >= len(writer.acknowledged)
        with pytest.raises(Unavailable):
            await writer.node.service.append("c", Append([message("no")]))
        try:
            await list_ids(node.service)
        except Unavailable:
            pass  # a list needs what is in memory on the disk; any other error would be a defect
        disk.space_bytes = None
        await until(lambda: node.service.ready()[0], "the node to recover")
        await writer.retry()
        await writer.check()
        await node.stop()
        disk.close()

    run_virtually(check())


@pytest.mark.crash
def test_p10_after_a_failed_sync_nothing_is_acknowledged_and_nothing_acknowledged_is_lost() -> None:
    """P10, H1, H4: whichever sync fails, the node says that it must end; then the process dies, later the power goes too."""
    figures = Figures()

    async def check(seed: int) -> None:
        fleet = Fleet(seed, figures)
        await fleet.live(None, 10)
        fleet.lose_process()
        await fleet.live(None, 60, fail_sync_after=random.Random(seed).randint(0, 25))
        assert any(isinstance(error, StorageFailed) for error in fleet.fatal), fleet.fatal
        # The pages that were not written look clean: the next start must not trust them.
        fleet.lose_process()
        await fleet.live(None, 5)
        fleet.lose_power()
        await fleet.live(None, 5)
        fleet.disk.close()

    for seed in range(12):
        run_virtually(check(seed))
    print(f"\n{figures}")
    assert figures.lost == figures.doubled == 0


FAILING_PROCESS = """
import os, sys
from dataclasses import replace
import apsw
import context_node.runtime.node as node
from context_node.runtime.databases import DiskAccess
from context_node.cli import main

class File(apsw.VFSFile):
    def xSync(self, flags):
        if os.path.exists(sys.argv[-1] + "/fail-syncs"):
            raise apsw.IOError("the disk failed a sync")
        return super().xSync(flags)

class Vfs(apsw.VFS):
    def __init__(self):
        super().__init__("failing", base="")
    def xOpen(self, name, flags):
        return File("", name, flags)

class Disk(DiskAccess):
    vfs = "failing"

class Log(node.LogStore):
    def __init__(self, path, identity, codec, options):
        super().__init__(path, identity, codec, replace(options, disk=Disk()))

vfs = Vfs()
node.LogStore = Log
main()
"""


def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content else None
    finally:
        connection.close()


def test_p10_a_process_whose_disk_fails_a_sync_exits_with_1_and_the_next_one_has_everything(tmp_path: Path) -> None:
    """P10: the write is answered by 503 or not at all, the process ends by itself, and what it acknowledged is there."""
    data = tmp_path / "data"
    command = [sys.executable, "-c", FAILING_PROCESS, "dev", "--port", "0", "--data-dir", str(data)]
    with open(tmp_path / "said", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=clean_environment())
        try:
            url = ""

            def is_ready() -> bool:
                nonlocal url
                found = re.search(r"ready url=(http://\S+)", (tmp_path / "said").read_text("utf-8"))
                url = found[1] if found else ""
                return bool(url) or process.poll() is not None

            wait_until(is_ready, "the node to be ready", 60.0)
            path = "/v1/contexts/c/messages?create=true"
            for number in range(20):
                assert call(url, "POST", path, {"message": {"role": "user", "content": f"m{number}", "id": f"m{number}"}})[0] == 201
            (data / "fail-syncs").touch()
            try:
                status, answer = call(url, "POST", path, {"message": {"role": "user", "content": "lost?", "id": "lost"}})
                assert status == 503 and answer["error"] in ("outcome_unknown", "unavailable")
            except OSError:
                pass  # it may be gone before it answers
            assert process.wait(60) == 1
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert "node_failed" in (tmp_path / "said").read_text("utf-8")
    (data / "fail-syncs").unlink()
    with running_node(data) as node:
        status, page = call(node.url, "GET", "/v1/contexts/c/messages?limit=100")
        texts = [one["parts"][0]["text"] for one in page["messages"]]
        assert status == 200 and texts[:20] == [f"m{number}" for number in range(20)] and texts[20:] in ([], ["lost?"])
        assert node.stop() == 0
