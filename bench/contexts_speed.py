"""What the pure state machine costs: appends, compactions and windows, in microseconds, best of several rounds.

Run: python bench/contexts_speed.py. No I/O; one core. A round takes the mean over many calls; the best round counts, since
everything else on the machine only ever adds.
"""

import statistics
import time
from collections.abc import Callable

from context_node.contexts.commands import AppendMessages, Defaults, Draft, PutConfig, Rules, draft
from context_node.contexts.compaction import compact
from context_node.contexts.context import Context, read_context
from context_node.contexts.items import Info, Item, live_item
from context_node.contexts.machine import Machine
from context_node.contexts.render import render_window
from context_node.contexts.requests import NewMessage
from context_node.contexts.window import Window

RULES = Rules()
ROUNDS = 7
TEXT = "A message of about two hundred bytes, as people and models write them to each other all day long. " * 2


def plain(role: str, tokens: int = 30) -> Draft:
    return draft(NewMessage(role, [{"type": "text", "text": TEXT}]), [tokens - 4])


USER, ASSISTANT = plain("user"), plain("assistant")


def machine_with(budget: int, messages: int = 0) -> tuple[Machine, Context]:
    machine = Machine()
    machine.apply(1, PutConfig("c", 1, RULES, Defaults(token_budget=budget)))
    append(machine, messages)
    return machine, machine.contexts["c"]


def append(machine: Machine, count: int) -> None:
    for place in range(count):
        machine.apply(2, AppendMessages("c", 2, RULES, (USER if place % 2 == 0 else ASSISTANT,)))


def best_us(run: Callable[[], int]) -> float:
    """Microseconds a call, best round; `run` returns how many calls it made."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        calls = run()
        rounds.append((time.perf_counter() - begun) / calls * 1e6)
    return min(rounds)


def append_without_compaction() -> int:
    machine, _ = machine_with(10_000_000)
    begun = time.perf_counter()
    append(machine, 5_000)
    global plain_append_us
    plain_append_us.append((time.perf_counter() - begun) / 5_000 * 1e6)
    return 5_000


plain_append_us: list[float] = []


def appends(budget: int, before: int) -> float:
    """Mean cost of an append with all compactions inside, in a context that has `before` messages already."""
    means = []
    for _ in range(3):
        machine, _ = machine_with(budget, before)
        machine.changes.messages.clear()
        begun = time.perf_counter()
        append(machine, 5_000)
        means.append((time.perf_counter() - begun) / 5_000 * 1e6)
    return min(means)


def compaction_of(count: int) -> float:
    """One compaction of a window of plain messages."""
    items = [item_of(place) for place in range(count)]
    plan = machine_with(1)[0].live_plan(machine_with(count * 30)[1], 10_000)

    def run() -> int:
        windows = [filled(items) for _ in range(50)]
        begun = time.perf_counter()
        for window in windows:
            assert compact(window, plan).changed
        spent.append((time.perf_counter() - begun) / 50 * 1e6)
        return 1

    spent: list[float] = []
    for _ in range(ROUNDS):
        run()
    return min(spent)


def item_of(place: int) -> Item:
    info = Info("user" if place % 2 == 0 else "assistant", 30, USER.marks, 1)
    return live_item(place + 1, b'{"seq":%d,%b}' % (place + 1, USER.fields), info)


def filled(items: list[Item]) -> Window:
    window = Window()
    for item in items:
        window.join(item)
    return window


def rendering(count: int) -> float:
    """A window of `count` items just after an append: what the last rewrite fixed is known already."""
    machine, context = machine_with(count * 30 * 2, count)
    plan = machine.plan(context, RULES)
    render_window(context.window, plan, version=1, last_seq=count)

    def run() -> int:
        for _ in range(500):
            render_window(context.window, plan, version=1, last_seq=count)
        return 500

    return best_us(run)


def reading_back(count: int) -> float:
    """A context of a window of `count` plain messages, from its record and rows."""
    machine, context = machine_with(count * 30 * 2, count)
    rows = {key & 0xFFFFFFFF: (key & 0xFFFFFFFF, body, info) for key, body, info in machine.changes.messages}
    record = context.record()

    def run() -> int:
        for _ in range(100):
            read_context("c", 1, record, lambda ranges: [rows[seq] for low, high in ranges for seq in range(low, high + 1)])
        return 100

    return best_us(run)


def main() -> None:
    for _ in range(ROUNDS):
        append_without_compaction()
    print(f"append, no compaction                      {min(plain_append_us):8.1f} µs (median {statistics.median(plain_append_us):.1f})")
    print(f"append, window of ~175, compactions inside  {appends(7_500, 0):7.1f} µs")
    print(f"  the same behind 100,000 messages          {appends(7_500, 100_000):7.1f} µs")
    for count in (50, 200, 1_000):
        print(f"compaction of {count:5d} plain items           {compaction_of(count):9.1f} µs")
    for count in (20, 175, 1_000):
        print(f"render {count:5d} items after an append        {rendering(count):9.1f} µs")
    print(f"read back 175 items                        {reading_back(175):8.1f} µs")


if __name__ == "__main__":
    main()
