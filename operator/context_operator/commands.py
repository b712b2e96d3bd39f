"""`contextstore cluster …`: look at a cluster and change it, from any machine that reaches a node.

Knows click and the admin API. Does not know Kubernetes. Every command that changes something says what it does, may be repeated, and goes
on where it was when it was interrupted.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
from tqdm import tqdm  # type: ignore[import-untyped]

from context_operator import archive_words, balancer
from context_operator.http_admin import AdminError, HttpAdmin
from context_operator.placement import plan
from context_operator.view import ClusterView, ShardView, cluster_info, view_of

T = TypeVar("T")
Command = Callable[..., Any]
DEFAULT_URL = "http://127.0.0.1:4000"
SYSTEM_NAME = "system"
STUCK_LOOKS = 6
"""A drain for which nothing can be done in so many looks, half a second apart, says why instead of waiting."""


@click.group("cluster")
def cluster() -> None:
    """Look at a cluster and change it.

    \b
    Three nodes on one machine:
      contextstore cluster init secret
      contextstore serve --cluster-secret-file secret --node-name n1 --data-dir n1
      contextstore serve --cluster-secret-file secret --node-name n2 --data-dir n2 --port 4010 --peer-port 4011 --join 127.0.0.1:4001
      contextstore serve --cluster-secret-file secret --node-name n3 --data-dir n3 --port 4020 --peer-port 4021 --join 127.0.0.1:4001
      contextstore cluster status
    """


def connected(command: Command) -> Command:
    """The options of a command that asks a node."""
    key = click.option("--key", envvar="CONTEXTSTORE_API_KEY", metavar="KEY", help="Key with scope admin; better in CONTEXTSTORE_API_KEY.")
    url = click.option(
        "--url", envvar="CONTEXTSTORE_URL", default=DEFAULT_URL, show_default=True, metavar="URL", help="Any node. [env: CONTEXTSTORE_URL]"
    )
    return url(key(command))


def ask(url: str, key: str | None, work: Callable[[HttpAdmin], Coroutine[Any, Any, T]]) -> T:
    """Run something with an admin client; what goes wrong ends the command with one sentence and exit code 1."""

    async def connected_work() -> T:
        async with HttpAdmin(url, key) as admin:
            return await work(admin)

    try:
        return asyncio.run(connected_work())
    except AdminError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("Stopped. Run the same command again to go on.", err=True)
        sys.exit(130)


async def look(admin: HttpAdmin) -> ClusterView:
    return view_of(await admin.look())


@cluster.command("init")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
def init(file: Path) -> None:
    """Make the secret that all nodes of a new cluster share, in FILE (which must not exist).

    Copy it to every machine and start the nodes with --cluster-secret-file FILE; the first one without --join begins the cluster.
    """
    try:
        with open(file, "x", opener=_private) as out:
            out.write(secrets.token_hex(32) + "\n")
    except FileExistsError:
        raise click.ClickException(f"{file} is there already; a new secret would lock the cluster's nodes out of each other.") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}.") from error
    click.echo(f"The cluster's secret is in {file}. The first node:\n\n  contextstore serve --cluster-secret-file {file} --node-name n1\n")
    click.echo(f"Every other one:\n\n  contextstore serve --cluster-secret-file {file} --node-name n2 --join HOST:4001")


def _private(path: str, flags: int) -> int:
    import os

    return os.open(path, flags, 0o600)


@cluster.command("status")
@connected
@click.option("--json", "as_json", is_flag=True, help="The whole answer of the node, as JSON.")
@click.option("--shards", "with_shards", is_flag=True, help="A line for every shard, not only for those that want attention.")
def status(url: str, key: str | None, as_json: bool, with_shards: bool) -> None:
    """Show nodes, shards and the archive. The exit code is 1 if a shard has no leader or too few replicas.

    \b
    Examples:
      contextstore cluster status
      contextstore cluster status --shards
      contextstore cluster status --json | jq .shards_under_replicated
    """
    value = ask(url, key, lambda admin: admin.look())
    view = view_of(value)
    if as_json:
        click.echo(json.dumps(value, indent=1))
    else:
        click.echo(status_text(view, with_shards))
    if view.shards_healthy < view.shards_total:
        sys.exit(1)


def status_text(view: ClusterView, with_shards: bool = False) -> str:
    """What an on-call engineer wants to see, worst first."""
    head = f"cluster {view.cluster_id}   replication factor {view.replication_factor}   asked: {view.name_of(view.node)}"
    understood = min((node.revision for node in view.nodes), default=view.feature_level)
    if understood > view.feature_level:
        head += f"\nfeature level {view.feature_level}; every node understands {understood}: `contextstore cluster finalize` raises it"
    health = f"shards: {view.shards_healthy} of {view.shards_total} healthy"
    if view.shards_leaderless:
        health += f", {view.shards_leaderless} without a leader (no majority answers: writes to them are refused)"
    if view.shards_under_replicated:
        health += f", {view.shards_under_replicated} under-replicated"
    archive = archive_words.status_line(view)
    rows: list[tuple[str, ...]] = [("NODE", "NAME", "STATE", "ZONE", "REPLICAS", "LEADS", "ARCHIVE", "PEERS AT", "VERSION")]
    for node in view.nodes:
        wished = (("cordoned", node.cordoned), ("draining", node.draining), ("slow disk", node.has_slow_disk))
        marks = [mark for mark, is_set in wished if is_set]
        state = ",".join(["ready" if node.is_ready else "starting" if node.is_alive else "AWAY", *marks])
        held = (str(node.replicas), str(node.leaders), archive_words.node_cell(node.archive))
        rows.append((str(node.number), node.name, state, node.zone, *held, node.peer_address, node.version))
    shown = [shard for shard in view.shards if with_shards or is_troubled(shard, view)]
    shards: list[tuple[str, ...]] = [("SHARD", "LEADER", "VOTERS", "LEARNERS", "TERM", "APPLIED", "LAG")] if shown else []
    for shard in shown:
        voters = " ".join(_one(one.node, one.is_caught_up, view) for one in shard.replicas if one.is_voter)
        learners = " ".join(_one(one.node, one.is_caught_up, view) for one in shard.replicas if not one.is_voter)
        leader = "NONE" if shard.leader is None else view.name_of(shard.leader)
        name = SYSTEM_NAME if shard.is_system else str(shard.shard)
        joint = " (changing)" if shard.is_joint else ""
        shards.append((name, leader, voters + joint, learners or "-", str(shard.term), str(shard.applied), str(shard.lag)))
    return "\n".join([head, health, archive, "", *_table(rows), *(["", *_table(shards)] if shards else [])])


def is_troubled(shard: ShardView, view: ClusterView) -> bool:
    """Whether a shard is worth a line of its own."""
    voters = [one for one in shard.replicas if one.is_voter]
    return (
        shard.leader is None
        or shard.is_joint
        or not all(one.is_caught_up for one in voters)
        or (not shard.is_system and any(not one.is_voter for one in shard.replicas))
    )


def _one(number: int, is_caught_up: bool, view: ClusterView) -> str:
    return view.name_of(number) + ("" if is_caught_up else "!")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@cluster.command("rebalance")
@connected
@click.option("--moves", type=click.IntRange(1, 64), default=balancer.MOVES_MAX, show_default=True, help="Shards moved at once.")
@click.option("--quiet", is_flag=True, help="Only the last line.")
def rebalance(url: str, key: str | None, moves: int, quiet: bool) -> None:
    """Move replicas and leaders until every shard is fully replicated and nodes hold equally much. Nodes do so by themselves, unless they
    run with --rebalance manual."""

    async def work(admin: HttpAdmin) -> tuple[str, ...]:
        while True:
            view, made = await balancer.turn(admin, moves, None if quiet else click.echo)
            if view is not None and made is not None and not made.steps and (not made.moves_left or made.blocked):
                return made.blocked
            await asyncio.sleep(0.3)

    blocked = ask(url, key, work)
    for sentence in blocked:
        click.echo(sentence, err=True)
    click.echo("Balanced." if not blocked else "Done as far as it goes.")
    if blocked:
        sys.exit(1)


@cluster.command("drain")
@click.argument("node", metavar="NODE")
@connected
@click.option("--no-wait", is_flag=True, help="Only say that it is wished; do not wait until it is done.")
def drain(node: str, url: str, key: str | None, no_wait: bool) -> None:
    """Move everything off a node (a name or number) and keep it empty, so that it can be stopped for good. `undrain` takes it back.

    A drain that cannot go on (too few nodes) says why and leaves every replica where it is safe.
    """

    async def work(admin: HttpAdmin) -> None:
        await admin.mark_node(node, draining=True)
        if no_wait:
            return
        view = await look(admin)
        number = next(each.number for each in view.nodes if node in (each.name, str(each.number)))
        total = _held(view, number)
        with tqdm(total=total, unit="replica", desc=f"draining {node}", disable=None) as bar:
            idle = 0
            while left := _held(view, number):
                bar.update(max(0, total - left - bar.n))
                made = plan(cluster_info(view), balancer.MOVES_MAX)
                idle = idle + 1 if not made.steps and made.blocked else 0
                if idle > STUCK_LOOKS:
                    raise AdminError(" ".join(made.blocked) + " The drain goes on by itself once it can; `undrain` takes it back.")
                await asyncio.sleep(0.5)
                view = await look(admin)
            bar.update(total - bar.n)

    ask(url, key, work)
    click.echo(
        f"{node} is to be emptied." if no_wait else f"{node} holds nothing any more. Stop it, then: contextstore cluster remove {node}"
    )


def _held(view: ClusterView, number: int) -> int:
    return sum(one.node == number for shard in view.shards for one in shard.replicas)


def _mark(name: str, help_text: str, said: str, **wished: bool) -> None:
    @cluster.command(name, help=help_text)
    @click.argument("node", metavar="NODE")
    @connected
    def command(node: str, url: str, key: str | None) -> None:
        ask(url, key, lambda admin: admin.mark_node(node, **wished))
        click.echo(said.format(node=node))


_mark("undrain", "Let a node take replicas again that was drained.", "{node} takes replicas again.", draining=False)
_mark("cordon", "Give a node no new replicas and no leaders; what it has stays.", "{node} takes nothing new.", cordoned=True)
_mark("uncordon", "Let a node take replicas again that was cordoned.", "{node} takes replicas again.", cordoned=False)
_mark(
    "remove",
    "Take a node that holds nothing out of the cluster for good: its data cannot join again.",
    "{node} is removed.",
    removed=True,
)


@cluster.command("replication")
@click.argument("factor", type=click.IntRange(1, 9), metavar="FACTOR")
@connected
def replication(factor: int, url: str, key: str | None) -> None:
    """Keep every shard on FACTOR nodes (odd). With fewer nodes it is kept on as many as there are, an odd number."""
    ask(url, key, lambda admin: admin.set_replication(factor))
    click.echo(f"Every shard is to have {factor} voters.")


@cluster.command("finalize")
@connected
def finalize(url: str, key: str | None) -> None:
    """End an upgrade: let the cluster use what the new version brought, once every node runs it.

    Until then all nodes speak as the version before, so each of them can still go back to it. Afterwards a node of the version before is
    refused. There is no way back.
    """

    async def work(admin: HttpAdmin) -> tuple[int, int]:
        view = await look(admin)
        level = min(node.revision for node in view.nodes)
        if level > view.feature_level:
            await admin.raise_level(level)
        elif any(node.revision > view.feature_level for node in view.nodes):
            behind = ", ".join(f"{node.name} ({node.version or 'away'})" for node in view.nodes if node.revision <= view.feature_level)
            raise AdminError(f"Some nodes still run the version before: {behind}. Upgrade them first.")
        return view.feature_level, max(level, view.feature_level)

    before, now = ask(url, key, work)
    click.echo(
        f"Feature level {before} → {now}." if now > before else f"Nothing to do: feature level {now} is what every node understands."
    )


@cluster.command("compare")
@connected
@click.option("--shard", type=int, multiple=True, help="Only this shard; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a shard.")
def compare(url: str, key: str | None, shard: tuple[int, ...], as_json: bool) -> None:
    """Have the replicas of every shard hash their whole state at the same log entry, and compare. Writes go on meanwhile.

    The exit code is 1 if replicas differ or could not be compared.

    \b
    Examples:
      contextstore cluster compare
      contextstore cluster compare --shard 3 --json | jq .replicas
    """

    async def work(admin: HttpAdmin) -> list[dict[str, Any]]:
        view = await look(admin)
        wanted = shard or tuple(each.shard for each in view.shards)
        found = []
        for number in tqdm(wanted, unit="shard", desc="comparing", disable=None, leave=False):
            value = await admin.compare(number)
            value["name"] = next((SYSTEM_NAME for each in view.shards if each.shard == number and each.is_system), str(number))
            for one in value["replicas"]:
                one["name"] = view.name_of(one["node"])
            found.append(value)
        return found

    found = ask(url, key, work)
    if as_json:
        for value in found:
            click.echo(json.dumps(value))
    else:
        click.echo("\n".join(_table([("SHARD", "ENTRY", "STATE", "REPLICAS"), *map(_comparison, found)])))
    if not all(value["is_equal"] and all(one["digest"] for one in value["replicas"]) for value in found):
        sys.exit(1)


def _comparison(value: dict[str, Any]) -> tuple[str, ...]:
    digests = {one["digest"] for one in value["replicas"] if one["digest"]}
    state = next(iter(digests))[:16] if value["is_equal"] else "DIFFERS"
    said = [
        one["name"] + ("?" if one["digest"] is None else "" if value["is_equal"] else f"={one['digest'][:16]}") for one in value["replicas"]
    ]
    return value["name"], str(value["index"]), state, " ".join(said)


@cluster.command("transfer")
@click.argument("shard", type=int, metavar="SHARD")
@click.argument("node", metavar="NODE")
@connected
def transfer(shard: int, node: str, url: str, key: str | None) -> None:
    """Hand a shard's leadership to its voter on a node (a name or number)."""

    async def work(admin: HttpAdmin) -> None:
        view = await look(admin)
        number = next((each.number for each in view.nodes if node in (each.name, str(each.number))), None)
        if number is None:
            raise AdminError(f"There is no node {node}. Nodes: {', '.join(each.name for each in view.nodes)}.")
        await admin.transfer_leader(shard, number)

    ask(url, key, work)
    click.echo(f"{node} leads shard {shard}.")
