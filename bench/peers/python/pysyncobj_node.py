"""One node of a pysyncobj cluster behind a small HTTP server, so that the load of `bench/cluster.py` can write to it.

    pysyncobj_node.py HTTP-PORT OWN:PEER-PORT JOURNAL OTHER:PEER-PORT …

A write is acknowledged when pysyncobj says that it was committed and applied. Its journal is a memory-mapped file that it never syncs: what
it acknowledges is in the kernel's memory, not on a disk.
"""

import asyncio
import sys
from typing import Any

from aiohttp import web
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found]


class Messages(SyncObj):  # type: ignore[misc]
    """Conversations by key, as pysyncobj's own examples keep things."""

    def __init__(self, own: str, others: list[str], journal: str) -> None:
        # Its defaults send what was gathered ten times a second, so that a write takes 200 ms; this suits a load better.
        conf = SyncObjConf(journalFile=journal, appendEntriesUseBatch=True, appendEntriesPeriod=0.002, autoTickPeriod=0.001)
        super().__init__(own, others, conf=conf)
        self._kept: dict[str, list[bytes]] = {}

    @replicated  # type: ignore[untyped-decorator]
    def append(self, key: str, body: bytes) -> int:
        messages = self._kept.setdefault(key, [])
        messages.append(body)
        return len(messages)


def main() -> None:
    port, own, journal, *others = sys.argv[1:]
    messages = Messages(own, others, journal)

    async def append(request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()

        def settle(result: Any, error: Any) -> None:
            if error == FAIL_REASON.SUCCESS:
                loop.call_soon_threadsafe(done.set_result, result)
            else:
                loop.call_soon_threadsafe(done.set_exception, RuntimeError(str(error)))

        messages.append(request.path, await request.read(), callback=settle)
        return web.json_response({"seq": await done}, status=201)

    async def leader(_request: web.Request) -> web.Response:
        found = messages._getLeader()
        return web.json_response({"leader": None if found is None else str(found)})

    app = web.Application()
    app.router.add_get("/leader", leader)
    app.router.add_post("/{key:.*}", append)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    main()
