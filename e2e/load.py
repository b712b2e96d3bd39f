"""Runs in a pod: an app that talks to the cluster through its Service, and writes down what it asked and what it was told.

Each context has two writers and a reader, so that its order is contested. An append is tried with the same id until it is answered, as
clients with ordinary retries do, and counts as one operation from its first try on. It runs until /tmp/stop exists and it has written
enough to tell something; then every history is read back. /tmp/history holds one JSON array for each operation.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import aiohttp

URL, KEY, RUN = os.environ["URL"].rstrip("/") + "/v1", os.environ["KEY"], os.environ["RUN"]
CA_FILE = os.environ.get("CA_FILE", "")
CONTEXTS, WRITERS, MESSAGES_MIN = 4, 2, 200
WRITER_PAUSE_S, READER_PAUSE_S, PATIENCE_S = 0.02, 0.1, 150.0


class App:
    def __init__(self, session: aiohttp.ClientSession, file: TextIO) -> None:
        self._session, self._file = session, file
        self.acknowledged = 0
        self._trust_read_at = 0
        self._context: ssl.SSLContext | bool = True

    def write(self, *values: object) -> None:
        self._file.write(json.dumps(values) + "\n")

    def _trust(self) -> ssl.SSLContext | bool:
        """Whom to believe, read again when it changes: an authority may be replaced while we talk."""
        if not CA_FILE:
            return True
        changed_at = Path(CA_FILE).stat().st_mtime_ns
        if changed_at != self._trust_read_at:
            self._trust_read_at, self._context = changed_at, ssl.create_default_context(cafile=CA_FILE)
        return self._context

    def is_over(self) -> bool:
        return self.acknowledged >= MESSAGES_MIN and Path("/tmp/stop").exists()

    async def ask(self, method: str, path: str, **arguments: object) -> dict:
        """Ask until there is an answer. Raises TimeoutError."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                async with self._session.request(method, URL + path, ssl=self._trust(), **arguments) as answer:
                    if answer.status < 500 and answer.status != 429:
                        return {**(await answer.json()), "http": answer.status}
                    last = f"{answer.status} {await answer.text()}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                last = repr(error)
            if time.monotonic() > until:
                raise TimeoutError(f"{method} {path}: {last}")
            await asyncio.sleep(0.05)

    async def append(self, context: str, writer: str, number: int) -> bool:
        message_id = f"{writer}-{number}"
        message = {"id": message_id, "role": "user", "parts": [{"type": "text", "text": message_id}]}
        called = time.monotonic_ns()
        try:
            answer = await self.ask("POST", f"/contexts/{context}/messages?create=true", json={"message": message})
        except TimeoutError as error:
            self.write("append", writer, context, message_id, called, None, None)
            self.write("wrong", str(error))
            return False
        if answer["http"] not in (200, 201):
            self.write("wrong", f"append of {message_id}: {answer}")
            return False
        self.write("append", writer, context, message_id, called, time.monotonic_ns(), answer["seq"])
        self.acknowledged += 1
        return True

    async def writing(self, context: str, writer: str) -> None:
        number = 1
        while not self.is_over() and await self.append(context, writer, number):
            number += 1
            await asyncio.sleep(WRITER_PAUSE_S)

    async def reading(self, context: str, reader: str, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await asyncio.sleep(READER_PAUSE_S)
            called = time.monotonic_ns()
            try:
                view = await self.ask("GET", f"/contexts/{context}")
            except TimeoutError as error:
                self.write("wrong", str(error))
                return
            if view["http"] not in (200, 404):
                self.write("wrong", f"read of {context}: {view}")
                return
            self.write("read", reader, context, called, time.monotonic_ns(), view.get("last_seq", 0))

    async def read_back(self, context: str) -> None:
        seen: list[list[object]] = []
        while True:
            page = await self.ask("GET", f"/contexts/{context}/messages?from_seq={len(seen) + 1}&limit=1000")
            if not page["messages"]:
                break
            for one in page["messages"]:
                if one["parts"][0]["text"] != one["id"]:
                    self.write("wrong", f"{context}: message {one['id']} holds {one['parts']}")
                seen.append([one["seq"], one["id"]])
        self.write("history", context, seen)

    async def run(self) -> None:
        contexts = [f"{RUN}-{number}" for number in range(CONTEXTS)]
        writers = [(context, f"{context}-w{number}") for context in contexts for number in range(WRITERS)]
        readers = [(context, f"{context}-r") for context in contexts]
        tasks = [self.writing(*one) for one in writers] + [self.reading(*one, self.is_over) for one in readers]
        await asyncio.gather(*tasks)
        for context in contexts:
            try:
                await self.read_back(context)
            except TimeoutError as error:
                self.write("wrong", str(error))


async def main() -> None:
    # A machine that is gone answers nothing at all until Kubernetes has noticed: that must not cost the whole timeout.
    timeout = aiohttp.ClientTimeout(total=5, sock_connect=1)
    # A connection for each request: the Service then chooses a node each time, as many small clients would have it.
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    with Path("/tmp/history").open("w", encoding="utf-8") as file:  # noqa: ASYNC230 - nothing else runs yet
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}, timeout=timeout, connector=connector) as session:
            await App(session, file).run()
    print("HISTORY IS COMPLETE", flush=True)
    # Until it is fetched and the pod deleted.
    await asyncio.sleep(600)


sys.exit(asyncio.run(main()))
