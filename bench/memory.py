"""`make bench-memory`: what a node needs when it holds much.

First `--contexts` contexts of 50 messages each; then the node is started again and asked: seconds until ready, resident memory then, and
after reading windows of contexts all over the store. Second `--messages` messages by `contextstore import` in one go: the node's most
resident memory.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from loads import TEXT
from processes import Server, node_server

MESSAGES_EACH = 50
MIB = 1 << 20


def message(place: int) -> dict[str, object]:
    """Short and long ones by turns, of two roles."""
    return {"role": "assistant" if place % 2 else "user", "parts": [{"type": "text", "text": TEXT[: 40 + place * 3]}]}


async def fill(url: str, contexts: int) -> None:
    """Append to every context its messages, as one batch."""
    body = json.dumps({"messages": [message(place) for place in range(MESSAGES_EACH)]})
    names = iter(range(contexts))
    headers = {"Content-Type": "application/json"}

    async def work(session: aiohttp.ClientSession) -> None:
        for name in names:
            async with session.post(f"{url}/v1/contexts/many-{name}/messages?create=true", data=body, headers=headers) as answer:
                answer.raise_for_status()

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(work(session))


async def read_windows(url: str, contexts: int, count: int) -> None:
    chosen = random.Random(1).sample(range(contexts), min(count, contexts))
    async with aiohttp.ClientSession() as session:
        for name in chosen:
            async with session.get(f"{url}/v1/contexts/many-{name}/context") as answer:
                answer.raise_for_status()
                await answer.read()


def many_contexts(folder: Path, contexts: int) -> None:
    with node_server(folder / "many") as node:
        began = time.monotonic()
        asyncio.run(fill(node.url, contexts))
        seconds = time.monotonic() - began
        rate = contexts * MESSAGES_EACH / seconds
        print(f"filled {contexts:,} contexts x {MESSAGES_EACH} in {seconds:.0f} s ({rate:,.0f} messages/s), {peak(node)}", flush=True)
    size = sum(path.stat().st_size for path in (folder / "many").rglob("*") if path.is_file())
    with node_server(folder / "many") as node:
        rss = node.rss_bytes() / MIB
        print(f"restarted: ready in {node.started_s:.2f} s (goal < 5), {rss:.0f} MiB resident (goal < 500), {size / 2**30:.2f} GiB on disk")
        asyncio.run(read_windows(node.url, contexts, 20_000))
        print(f"after reading 20,000 windows: {node.rss_bytes() / MIB:.0f} MiB resident (goal < 500)")


def one_import(folder: Path, messages: int) -> None:
    lines = folder / "import.jsonl"
    with lines.open("w") as out:
        for name in range(messages // MESSAGES_EACH):
            out.write(json.dumps({"id": f"import-{name}", "messages": [message(place) for place in range(MESSAGES_EACH)]}) + "\n")
    with node_server(folder / "import") as node:
        began = time.monotonic()
        command = [str(Path(sys.executable).parent / "contextstore"), "import", str(lines), "--url", node.url]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        print(f"imported {messages:,} messages in {seconds:.0f} s ({messages / seconds:,.0f} messages/s), {peak(node)} (goal < 1,024)")


def peak(node: Server) -> str:
    return f"{node.peak_bytes() / MIB:.0f} MiB resident at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="contextstore-memory-") as folder:
        if options.contexts:
            many_contexts(Path(folder), options.contexts)
        if options.messages:
            one_import(Path(folder), options.messages)


if __name__ == "__main__":
    main()
