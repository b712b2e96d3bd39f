"""`make demo`: real conversations, message by message through a real node, and what a model would see after each user turn.

Starts a node on a temporary directory and a free port (or uses --url), imports the conversations as anybody would, then for each budget
appends every message over HTTP and reads the window after each user message. Our windows and two naive ones are judged by the same code
(`judged`), which reads only the windows, so that a store that lied about itself would be found out. Exits 1 if one of ours is over its
budget without saying so, splits a tool call from its result, or lost the system message.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

Message = dict[str, Any]

BUDGETS = (2_000, 4_000, 8_000)
KEPT_BY_COUNT = 20
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "airline_conversations.jsonl.gz"
SAMPLE = Path(__file__).resolve().parent / "sample_conversations.jsonl"
CONCURRENCY = 24
START_DEADLINE_S = 60.0
CONTEXTSTORE = [sys.executable, "-m", "context_node"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a model call would have seen: the messages, and whether the answer said that it is over the budget."""

    messages: Sequence[Message]
    says_over_budget: bool = False


@dataclass(slots=True)
class Tally:
    """Counts over many windows. Sums of shares become means in `mean_cached` and `mean_used`."""

    windows: int = 0
    over_budget: int = 0
    flagged: int = 0
    split: int = 0
    lost_system: int = 0
    used_sum: float = 0.0
    cached_sum: float = 0.0
    followers: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        for name in ("windows", "over_budget", "flagged", "split", "lost_system", "used_sum", "cached_sum", "followers"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems += other.problems

    @property
    def mean_used(self) -> float:
        return self.used_sum / self.windows if self.windows else 0.0

    @property
    def mean_cached(self) -> float:
        return self.cached_sum / self.followers if self.followers else 0.0


def main() -> None:
    arguments = parsed_arguments()
    data = data_file(arguments.data)
    conversations = read_conversations(data)
    messages = sum(len(conversation["messages"]) for conversation in conversations)
    print(f"{len(conversations)} conversations, {messages:,} messages from {data.name}")
    with node(arguments.url) as url:
        import_seconds = import_file(url, data)
        print(f"imported in {import_seconds:.1f} s with `contextstore import`")
        started = time.monotonic()
        rows = [asyncio.run(compare(url, conversations, budget)) for budget in arguments.budgets]
        print(f"{messages * len(rows):,} appends, a window after every user message, in {time.monotonic() - started:.1f} s\n")
    print_table(arguments.budgets, rows)
    ours = [row["Context Store"] for row in rows]
    problems = [problem for tally in ours for problem in tally.problems]
    for problem in problems[:20]:
        print(problem, file=sys.stderr)
    if problems or not all(tally.windows for tally in ours):
        sys.exit(f"FAILED: {len(problems)} windows of ours break a promise")


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="JSON Lines of conversations, as `contextstore import` takes them")
    parser.add_argument("--url", help="a node that runs already; without it one is started on a temporary directory")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), metavar="TOKENS")
    return parser.parse_args()


def data_file(given: Path | None) -> Path:
    if given is not None:
        return given
    if SHARED_DATA.exists():
        return SHARED_DATA
    print(f'No data file (give ARGS="--data FILE"): using the small sample {SAMPLE.name}, whose figures are not worth quoting.')
    return SAMPLE


def read_conversations(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines if line.strip()]


@contextlib.contextmanager
def node(url: str | None) -> Iterator[str]:
    """The URL of a node that is ready; one that was started here is stopped and its data removed."""
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    with tempfile.TemporaryDirectory(prefix="contextstore-demo-") as directory:
        command = [*CONTEXTSTORE, "dev", "--port", "0", "--data-dir", directory, "--log-level", "warning"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CONTEXTSTORE_")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            yield ready_url(process)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)
            if process.poll() is None:
                process.kill()
                process.communicate()


def ready_url(process: "subprocess.Popen[str]") -> str:
    """What the banner says once the node is ready. It ends with the process if that dies first."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"http://[^\s/]+:\d+", line)
        if found:
            return found[0]
    sys.exit(f"the node did not start (exit code {process.wait(START_DEADLINE_S)})")


def import_file(url: str, data: Path) -> float:
    started = time.monotonic()
    subprocess.run([*CONTEXTSTORE, "import", str(data), "--url", url, "--prefix", "demo-import:"], check=True)
    return time.monotonic() - started


async def compare(url: str, conversations: list[dict[str, Any]], budget: int) -> dict[str, Tally]:
    """All conversations at one budget: a tally for each way."""
    totals = {"Context Store": Tally(), f"keep the last {KEPT_BY_COUNT}": Tally(), "cut the oldest until it fits": Tally()}
    # A context that is there from an earlier run on the same node would not start empty.
    run_id = f"demo-{os.getpid()}-{time.time_ns():x}"
    free = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session, asyncio.TaskGroup() as tasks:
        for conversation in conversations:
            context = f"{url}/v1/contexts/{run_id}:{budget}:{conversation['id']}"
            tasks.create_task(one_conversation(session, free, context, conversation, budget, totals))
    return totals


async def one_conversation(
    session: aiohttp.ClientSession,
    free: asyncio.Semaphore,
    context: str,
    conversation: dict[str, Any],
    budget: int,
    totals: dict[str, Tally],
) -> None:
    async with free:
        windows, turns = await through_the_node(session, context, conversation["messages"], budget)
        history = await whole_history(session, context)
    ways = {
        "Context Store": windows,
        f"keep the last {KEPT_BY_COUNT}": [keep_last(history[:turn], KEPT_BY_COUNT) for turn in turns],
        "cut the oldest until it fits": [cut_oldest(history[:turn], budget) for turn in turns],
    }
    has_system = any(message["role"] == "system" for message in history)
    for way, seen in ways.items():
        totals[way].add(judged(seen, budget, has_system=has_system, where=f"{way}, {conversation['id']} at {budget}"))


async def through_the_node(session: aiohttp.ClientSession, context: str, messages: list[Any], budget: int) -> tuple[list[Seen], list[int]]:
    """Append one by one, read the window after each user message: the windows, and how many messages there were at each."""
    await call(session, "PUT", context, {"token_budget": budget})
    windows, turns = [], []
    for count, message in enumerate(messages, 1):
        await call(session, "POST", f"{context}/messages", {"message": message})
        if message["role"] == "user":
            window = await call(session, "GET", f"{context}/context")
            windows.append(Seen(window["messages"], window["over_budget"]))
            turns.append(count)
    return windows, turns


async def whole_history(session: aiohttp.ClientSession, context: str) -> list[Any]:
    history: list[Any] = []
    while True:
        page = await call(session, "GET", f"{context}/messages?limit=1000&from_seq={len(history) + 1}")
        history += page["messages"]
        if len(history) >= page["last_seq"]:
            return history


async def call(session: aiohttp.ClientSession, method: str, url: str, body: Any = None) -> Any:
    async with session.request(method, url, json=body) as response:
        answer = await response.json()
        if response.status >= 400:
            raise RuntimeError(f"{method} {url}: {response.status} {answer}")
        return answer


def print_table(budgets: list[int], rows: list[dict[str, Tally]]) -> None:
    heads = ("budget", "way", "windows", "over budget", "split call", "lost system", "flagged", "cache share", "budget used")
    print(" | ".join([f"{heads[0]:>6}", f"{heads[1]:28}", *(f"{head:>11}" for head in heads[2:])]))
    for budget, row in zip(budgets, rows, strict=True):
        for way, tally in row.items():
            counts = (tally.windows, tally.over_budget, tally.split, tally.lost_system, tally.flagged)
            cells = [f"{count:>11,}" for count in counts] + [f"{tally.mean_cached:>11.3f}", f"{tally.mean_used:>11.3f}"]
            print(" | ".join([f"{budget:>6,}", f"{way:28}", *cells]))
    print(
        "\nover budget: above the budget without a word; flagged: the floor alone is larger and the answer says `over_budget: true`.\n"
        "cache share: common prefix tokens / tokens of the previous window, mean. budget used: window tokens / budget, mean."
    )


# How windows are judged, and the two naive ways of making them.


def judged(windows: Sequence[Seen], budget: int, *, has_system: bool, where: str) -> Tally:
    """Judge the windows of one conversation, in the order in which a model would see them."""
    tally = Tally()
    before: Sequence[Message] | None = None
    for number, window in enumerate(windows, 1):
        tokens = tokens_of(window.messages)
        tally.windows += 1
        tally.used_sum += tokens / budget
        if tokens > budget and window.says_over_budget:
            tally.flagged += 1
        elif tokens > budget:
            tally.over_budget += 1
            tally.problems.append(f"{where}, window {number}: {tokens} tokens in a budget of {budget}, not flagged")
        if is_split(window.messages):
            tally.split += 1
            tally.problems.append(f"{where}, window {number}: a tool call is apart from its result")
        if has_system and not any(message["role"] == "system" for message in window.messages):
            tally.lost_system += 1
            tally.problems.append(f"{where}, window {number}: the system message is gone")
        if before:
            tally.followers += 1
            tally.cached_sum += tokens_of(before[: common_prefix(before, window.messages)]) / max(1, tokens_of(before))
        before = window.messages
    return tally


def tokens_of(messages: Sequence[Message]) -> int:
    return sum(message["token_count"] for message in messages)


def is_split(messages: Sequence[Message]) -> bool:
    """Whether a result stands without its call before it, or a call without its result after it. Ids may be used again.

    Windows are read after a user message, when no call can be waiting any more.
    """
    waiting: dict[str, int] = {}
    for message in messages:
        for part in message["parts"]:
            if part["type"] == "tool_call":
                waiting[part["tool_call_id"]] = waiting.get(part["tool_call_id"], 0) + 1
            elif part["type"] == "tool_result":
                count = waiting.get(part["tool_call_id"], 0)
                if not count:
                    return True
                waiting[part["tool_call_id"]] = count - 1
    return any(waiting.values())


def common_prefix(before: Sequence[Message], after: Sequence[Message]) -> int:
    """How many messages both begin with: what a provider's prompt cache can serve again."""
    count = 0
    for one, other in zip(before, after, strict=False):
        if said(one) != said(other):
            break
        count += 1
    return count


def said(message: Message) -> str:
    return json.dumps([message["role"], message["parts"]], sort_keys=True)


def keep_last(history: Sequence[Message], count: int) -> Seen:
    """The naive way that looks at numbers of messages only."""
    return Seen(history[-count:])


def cut_oldest(history: Sequence[Message], budget: int) -> Seen:
    """The naive way that looks at tokens only: drop from the front until the rest fits."""
    start, tokens = 0, tokens_of(history)
    while tokens > budget and start < len(history):
        tokens -= history[start]["token_count"]
        start += 1
    return Seen(history[start:])


if __name__ == "__main__":
    main()
