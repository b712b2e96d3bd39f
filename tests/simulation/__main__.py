"""Deterministic simulation of clusters, from the command line.

    python -m simulation run --seeds 150        every seed in two interpreters, whose traces must be equal
    python -m simulation replay 4711            one seed again, with what happened on the way
    python -m simulation mutants                how many seeds each planted bug survives

A run's result depends on its seed and the code alone.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import click
from tqdm import tqdm  # type: ignore[import-untyped]

HASH_SEEDS = ("0", "4242")
"""Of the two interpreters: what depends on the order of a set of strings comes out differently in them."""

EVENTS = 20_000


def worker(words: list[str], hash_seed: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "simulation", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=os.path.dirname(os.path.dirname(__file__)))


def lines_of(processes: list["subprocess.Popen[str]"]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(place of the process, what it says), None at its end; all processes are ended if the caller stops."""
    said: SimpleQueue[tuple[int, dict[str, Any] | None]] = SimpleQueue()

    def read(place: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said.put((place, json.loads(line)))
        process.wait()
        said.put((place, None))

    readers = [threading.Thread(target=read, args=(place, process), daemon=True) for place, process in enumerate(processes)]
    for reader in readers:
        reader.start()
    left = len(processes)
    try:
        while left:
            place, line = said.get()
            left -= line is None
            yield place, line
    finally:
        for process in processes:
            process.kill()
        for reader in readers:
            reader.join()


def plant_next_version(is_wanted: bool) -> None:
    """Let a second revision of the state machine exist in this interpreter; runs then begin with the first."""
    if is_wanted:
        from support.next_version import NEXT_VERSION
        from support.planted import plant as plant_it

        plant_it(NEXT_VERSION)


@click.group(help=__doc__)
def main() -> None:
    logging.disable(logging.CRITICAL)


@main.command()
@click.option("--seeds", default=150, show_default=True, help="How many.")
@click.option("--first", default=1, show_default=True, help="The first of them.")
@click.option("--events", default=EVENTS, show_default=True, help="Events in each run.")
@click.option("--once", is_flag=True, help="Not every seed twice: each process takes half of them.")
@click.option("--upgrade", is_flag=True, help="Two versions take part: nodes become the next one, and the one before again.")
def run(seeds: int, first: int, events: int, once: bool, upgrade: bool) -> None:
    """Run seeds; exit 1 if a rule was violated, something was raised, or two runs of a seed differ."""
    begin = time.monotonic()
    halves = [(first, seeds), (first, seeds)] if not once else [(first, seeds // 2), (first + seeds // 2, seeds - seeds // 2)]
    processes = [
        worker(["work", str(start), str(count), str(events), *(["--upgrade"] if upgrade else [])], hash_seed)
        for (start, count), hash_seed in zip(halves, HASH_SEEDS, strict=True)
    ]
    totals, marks, bad = Counter[str](), Counter[str](), list[str]()
    traces: dict[int, tuple[int, int]] = {}
    ended = 0
    with tqdm(total=sum(count for _, count in halves), unit="run", disable=not sys.stderr.isatty()) as bar:
        for _, line in lines_of(processes):
            if line is None:
                continue
            bar.update()
            ended += 1
            seed, trace = line["seed"], (line["trace"], line["events"])
            if line["failure"]:
                bad.append(f"seed {seed}: {line['failure']}")
            if traces.setdefault(seed, trace) != trace:
                bad.append(f"seed {seed}: two runs differ")
            if once or line["hash_seed"] == HASH_SEEDS[0]:
                marks.update(line["marks"])
                totals.update({name: line[name] for name in ("events", "operations", "acknowledged")})
    if ended != sum(count for _, count in halves):
        bad.append(f"{ended} runs of {sum(count for _, count in halves)} ended: a process died")
    for name, count in sorted(marks.items()):
        click.echo(f"{count:>9,}  {name}")
    click.echo(
        f"{len(traces):,} seeds{'' if once else ', each twice with equal traces'}: {totals['events']:,} events, "
        f"{totals['operations']:,} operations, "
        f"{totals['acknowledged']:,} writes acknowledged; {len(marks)} kinds of situations reached; {len(bad)} violations; "
        f"{time.monotonic() - begin:.0f} s"
    )
    for each in sorted(set(bad)):
        again = f"{each.split()[1].rstrip(':')} --events {events}{' --upgrade' if upgrade else ''}"
        click.echo(f"VIOLATION {each}\n  again: python -m simulation replay {again}")
    sys.exit(1 if bad else 0)


@main.command(hidden=True)
@click.argument("first", type=int)
@click.argument("count", type=int)
@click.argument("events", type=int)
@click.option("--upgrade", is_flag=True)
def work(first: int, count: int, events: int, upgrade: bool) -> None:
    """One process's share of `run`; a JSON line for each seed."""
    plant_next_version(upgrade)
    from simulation.run import simulate

    for seed in range(first, first + count):
        line: dict[str, Any] = {"seed": seed, "hash_seed": os.environ.get("PYTHONHASHSEED", ""), "failure": ""}
        try:
            seen = simulate(seed, events)
        except Exception as error:
            line.update(events=0, trace=0, operations=0, acknowledged=0, marks={}, failure=f"raised {error!r}")
        else:
            line.update(events=seen.events, trace=seen.trace, operations=seen.operations, acknowledged=seen.acknowledged, marks=seen.marks)
            line["failure"] = str(seen.violation) if seen.violation is not None else ""
        click.echo(json.dumps(line))


@main.command()
@click.argument("seed", type=int)
@click.option("--events", default=EVENTS, show_default=True)
@click.option("--upgrade", is_flag=True, help="As in `run`.")
def replay(seed: int, events: int, upgrade: bool) -> None:
    """One seed again: its faults in order, and how it ended."""
    plant_next_version(upgrade)
    from simulation.run import simulate

    seen = simulate(seed, events, tell=click.echo)
    click.echo(f"{seen.events:,} events, {seen.simulated_s:.1f} simulated s, {seen.operations:,} operations, trace {seen.trace:08x}")
    click.echo(f"VIOLATION {seen.violation}" if seen.violation is not None else "nothing was violated")
    sys.exit(seen.violation is not None)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--seeds", default=100, show_default=True, help="So many are tried before a bug counts as not found.")
@click.option("--events", default=EVENTS, show_default=True)
def mutants(names: tuple[str, ...], seeds: int, events: int) -> None:
    """Plant each bug in an interpreter of its own, and run seeds until a rule finds it. Exit 1 if one is not found."""
    from simulation.mutants import MUTANTS

    chosen = [place for place, mutant in enumerate(MUTANTS) if not names or any(name in mutant.name for name in names)]
    halves = [chosen[0::2], chosen[1::2]]
    alive, tries = 0, list[int]()
    processes = [
        worker(["plant", str(seeds), str(events), *map(str, half)], hash_seed)
        for half, hash_seed in zip(halves, HASH_SEEDS, strict=True)
        if half
    ]
    for _, line in lines_of(processes):
        if line is None:
            continue
        mutant = MUTANTS[line["place"]]
        if line["rule"]:
            tries.append(line["seeds"])
            click.echo(f"{line['seeds']:>4} seeds  {line['rule']:<9}  {mutant.name}  ({mutant.cites})")
        else:
            alive += 1
            click.echo(f"   NOT FOUND by {line['seeds']} seeds  {mutant.name}  ({mutant.cites}){line['raised']}")
    if tries:
        click.echo(f"found after {sorted(tries)[len(tries) // 2]} seeds in the middle, {max(tries)} at most")
    click.echo(f"{len(tries)} of {len(chosen)} planted bugs were found by a rule")
    sys.exit(1 if alive or len(tries) != len(chosen) else 0)


@main.command(hidden=True)
@click.argument("seeds", type=int)
@click.argument("events", type=int)
@click.argument("places", type=int, nargs=-1)
def plant(seeds: int, events: int, places: tuple[int, ...]) -> None:
    """One process's share of `mutants`: each bug in a process of its own; a JSON line for each."""
    for place in places:
        subprocess.run([sys.executable, "-m", "simulation", "hunt", str(seeds), str(events), str(place)], check=False)


@main.command(hidden=True)
@click.argument("seeds", type=int)
@click.argument("events", type=int)
@click.argument("place", type=int)
def hunt(seeds: int, events: int, place: int) -> None:
    """Plant one bug, and run seeds until a rule finds it. What is merely raised does not count."""
    from simulation.mutants import MUTANTS
    from simulation.mutants import plant as plant_it

    plant_it(MUTANTS[place])
    from simulation.run import simulate

    line: dict[str, Any] = {"place": place, "seeds": seeds, "rule": "", "raised": ""}
    raised = 0
    for seed in range(1, seeds + 1):
        try:
            violation = simulate(seed, events).violation
        except Exception as error:
            raised += 1
            line["raised"] = f"; {raised} runs raised something, the last {error!r}"
            continue
        if violation is not None:
            line.update(seeds=seed, rule=violation.rule)
            break
    click.echo(json.dumps(line))


if __name__ == "__main__":
    main()
