"""History is copied to a Postgres in the cluster behind the writes; its troubles are told and cost no write, and it catches up."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import NAMESPACE
from kubernetes_cli import apply, condition, kubectl, until
from postgres_pod import PostgresPod
from store_cluster import Cluster

KIND = "ArchiveHealthy"


@pytest.fixture(scope="session")
def postgres(operator: str, postgres_image: str) -> Iterator[PostgresPod]:
    server = PostgresPod(NAMESPACE, postgres_image)
    try:
        server.start("quail-1")
        yield server
    finally:
        server.delete()


def give(postgres: PostgresPod, password: str) -> None:
    """The Secret that the cluster's nodes read."""
    apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pg"}, "stringData": {"uri": postgres.uri(password)}}, namespace="apps"
    )


def archived(cluster: Cluster, postgres: PostgresPod) -> dict[str, int]:
    """By context how many messages are there: without holes from the first on, or the test fails."""
    rows = [row.split("|") for row in postgres.ask("SELECT context_id, min(seq), max(seq), count(*) FROM contextstore.messages GROUP BY 1")]
    assert all((first, last) == ("1", count) for _, first, last, count in rows), rows
    return {name: int(count) for name, _, _, count in rows}


def acknowledged(cluster: Cluster, run_name: str) -> dict[str, int]:
    """By context of an app how many messages it has."""
    names = [f"{run_name}-{number}" for number in range(4)]
    return {name: int(cluster.ask("GET", f"/contexts/{name}")[1]["last_seq"]) for name in names}


def events(cluster: Cluster) -> list[tuple[str, str]]:
    """Those of the archive, as (type, reason), oldest first."""
    value = json.loads(
        kubectl("-n", cluster.namespace, "get", "events", "--field-selector", f"involvedObject.name={cluster.name}", "-o", "json")
    )
    found = sorted((one["firstTimestamp"], one["type"], one["reason"]) for one in value["items"] if "Postgres" in one["message"])
    return [(kind, reason) for _, kind, reason in found]


def lag(cluster: Cluster) -> dict[str, Any]:
    told: dict[str, Any] = cluster.ask("GET", "/cluster")[1]["archive"]
    return told


def is_whole(cluster: Cluster, postgres: PostgresPod, run_name: str) -> bool:
    there = archived(cluster, postgres)
    return all(there.get(name) == count for name, count in acknowledged(cluster, run_name).items())


@pytest.fixture
def archiving(another: Callable[..., Cluster], postgres: PostgresPod) -> Cluster:
    give(postgres, "quail-1")
    cluster = another("archived", archive={"postgres": {"secretRef": {"name": "pg"}}})
    cluster.wait_ready(3)
    cluster.wait_condition(KIND, "True")
    return cluster


def test_postgres_goes_and_comes_back_and_a_new_password_restarts_nothing(archiving: Cluster, postgres: PostgresPod) -> None:
    cluster, pods = archiving, archiving.pods()
    assert condition(cluster.get(), KIND)["reason"] == "Copying"
    cluster.start_app("copied")
    until("history gets there", lambda: sum(archived(cluster, postgres).values()) > 100)
    assert events(cluster) == []

    # Postgres is killed.
    began = time.monotonic()
    postgres.take_away()
    told = cluster.wait_condition(KIND, "False")
    print(f"ArchiveHealthy is False {time.monotonic() - began:.1f} s after Postgres was killed: {told['reason']}: {told['message']}")
    assert told["reason"] in ("PostgresUnreachable", "PostgresStopped", "PostgresTimeout")
    until("an event tells it", lambda: [kind for kind, _ in events(cluster)] == ["Warning"])
    before = acknowledged(cluster, "copied")
    until("appends go on", lambda: all(count > before[name] + 50 for name, count in acknowledged(cluster, "copied").items()))
    assert condition(cluster.get(), "Ready")["status"] == "True"
    waiting = lag(cluster)
    assert waiting["lag_messages"] > 200
    after_s, size = time.monotonic() - began, waiting["lag_bytes"]
    print(f"after {after_s:.0f} s {waiting['lag_messages']} messages ({size} bytes) wait, the oldest for {waiting['lag_s']:.1f} s")

    # It comes back.
    postgres.bring_back()
    postgres.wait_ready()
    began = time.monotonic()
    cluster.wait_condition(KIND, "True")
    print(f"ArchiveHealthy is True {time.monotonic() - began:.1f} s after Postgres answered again")
    until("an event tells that, too", lambda: [kind for kind, _ in events(cluster)] == ["Warning", "Normal"])
    until("nothing waits but what was just written", lambda: lag(cluster)["lag_s"] < 5)
    print(f"caught up {time.monotonic() - began:.1f} s after Postgres answered again")

    # Its password changes, and the Secret later.
    postgres.change_password("heron-2")
    told = until("the refusal is told", lambda: (found := condition(cluster.get(), KIND))["reason"] == "LoginRefused" and found)
    assert "heron" not in told["message"]
    give(postgres, "heron-2")
    began = time.monotonic()
    cluster.wait_condition(KIND, "True", 300)
    print(f"ArchiveHealthy is True {time.monotonic() - began:.1f} s after the Secret was changed")
    cluster.stop_app("copied")
    until("everything is archived", lambda: is_whole(cluster, postgres, "copied"))
    shown = cluster.ask("GET", "/contexts/copied-0/messages?from_seq=1&limit=1000")[1]["messages"]
    rows = postgres.ask("SELECT raw FROM contextstore.messages WHERE context_id = 'copied-0' AND seq <= 1000 ORDER BY seq")
    assert [json.loads(row) for row in rows] == shown
    assert cluster.pods() == pods
    restarts = kubectl(
        "-n",
        cluster.namespace,
        "get",
        "pods",
        "-l",
        f"app.kubernetes.io/instance={cluster.name}",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    )
    assert restarts.split() == ["0", "0", "0"]
