"""Runs in a pod: an app that talks to the cluster through its Service, and remembers what was acknowledged.

Each task writes one context's messages, one after the other, each with an id and ordinary retries, and now and then reads how many
there are. It runs until /tmp/stop exists and it has
written enough to tell something; then every history is read back from the cluster and compared. One line of JSON tells the result.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

URL, KEY = os.environ["URL"].rstrip("/") + "/v1", os.environ["KEY"]
CONTEXTS, PAUSE_S, MESSAGES_MIN = 8, 0.02, 200
RUN = os.environ["RUN"]


async def ask(session: aiohttp.ClientSession, method: str, path: str, until: float, **arguments: object) -> dict:
    """Ask until there is an answer, as a client with ordinary retries does."""
    while True:
        try:
            async with session.request(method, URL + path, **arguments) as answer:
                if answer.status < 500 and answer.status != 429:
                    return {"status": answer.status, **(await answer.json())}
                last = f"{answer.status} {await answer.text()}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            last = repr(error)
        if time.monotonic() > until:
            raise TimeoutError(f"{method} {path}: {last}")
        await asyncio.sleep(0.05)


async def talk(session: aiohttp.ClientSession, name: str, told: dict, is_over: Callable[[], bool]) -> None:
    number = 0
    while not is_over():
        number += 1
        began = time.monotonic()
        message = {"id": f"{name}-{number}", "role": "user", "parts": [{"type": "text", "text": f"{name} {number}"}]}
        answer = await ask(session, "POST", f"/contexts/{name}/messages?create=true", began + 120, json={"message": message})
        if answer["status"] != 201:
            told["wrong"].append(f"append: {answer}")
            return
        told["slowest_s"] = max(told["slowest_s"], round(time.monotonic() - began, 2))
        told["acknowledged"] += 1
        if answer["seq"] != number:
            told["wrong"].append(f"{name}: message {number} got seq {answer['seq']}")
            return
        if number % 10 == 0:
            view = await ask(session, "GET", f"/contexts/{name}", time.monotonic() + 120)
            if view.get("last_seq") != number:
                told["wrong"].append(f"{name}: after {number} a read saw {view.get('last_seq')}")
        await asyncio.sleep(PAUSE_S)


async def read_back(session: aiohttp.ClientSession, name: str, count: int, told: dict) -> None:
    seen = []
    while len(seen) < count + 1:
        path = f"/contexts/{name}/messages?from_seq={len(seen) + 1}&limit=1000"
        page = (await ask(session, "GET", path, time.monotonic() + 120))["messages"]
        if not page:
            break
        seen += [(one["seq"], one["parts"][0]["text"]) for one in page]
    if seen != [(number, f"{name} {number}") for number in range(1, count + 1)]:
        told["wrong"].append(f"{name}: {count} were acknowledged, the history holds {len(seen)}")


async def main() -> int:
    told = {"acknowledged": 0, "slowest_s": 0.0, "wrong": []}
    stop = Path("/tmp/stop")

    def is_over() -> bool:
        return told["acknowledged"] >= MESSAGES_MIN and stop.exists()

    names = [f"{RUN}-{number}" for number in range(CONTEXTS)]
    timeout = aiohttp.ClientTimeout(total=5)
    # A connection for each request: the Service then chooses a node each time, as many small clients would have it.
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}, timeout=timeout, connector=connector) as session:
        try:
            await asyncio.gather(*(talk(session, name, told, is_over) for name in names))
            for name in names:
                view = await ask(session, "GET", f"/contexts/{name}", time.monotonic() + 120)
                await read_back(session, name, view["last_seq"], told)
                told["counted"] = told.get("counted", 0) + view["last_seq"]
        except TimeoutError as error:
            told["wrong"].append(str(error))
    if not told["wrong"] and told["counted"] != told["acknowledged"]:
        told["wrong"].append(f"{told['acknowledged']} were acknowledged, {told['counted']} are there")
    print("RESULT " + json.dumps(told), flush=True)
    return 0


sys.exit(asyncio.run(main()))
