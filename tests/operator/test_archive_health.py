"""The condition ArchiveHealthy: what nodes tell becomes a reason, a sentence and an event, and what they do not tell is no news."""

from typing import Any

import pytest

from context_operator import archive_words
from context_operator.archive_words import bytes_text, coarse_lag, reason_of
from context_operator.commands import status_text
from context_operator.view import ArchiveView, ClusterView, NodeView
from support.operator_passes import Operator, Run

ARCHIVE: dict[str, Any] = {"postgres": {"secretRef": {"name": "pg", "key": "uri"}}}
KIND = "ArchiveHealthy"


def healthy(lag_messages: int = 0, lag_bytes: int = 0, lag_s: float = 0.0) -> ArchiveView:
    return ArchiveView(True, False, "", "", lag_messages, lag_bytes, lag_s)


def ill(cause: str, reason: str, lag_messages: int = 0, lag_bytes: int = 0, lag_s: float = 0.0, is_late: bool = False) -> ArchiveView:
    return ArchiveView(False, is_late, cause, reason, lag_messages, lag_bytes, lag_s)


def told(operator: Operator) -> tuple[str, str]:
    found = operator.condition(KIND)
    return found["status"], found["reason"]


def events(operator: Operator) -> list[tuple[str, str]]:
    """Those of the archive: type and reason, as they came."""
    found = [one for one in operator.kubernetes.all("Event") if "Postgres" in one["message"]]
    return [(one["type"], one["reason"]) for one in sorted(found, key=lambda one: str(one["firstTimestamp"]))]


def test_it_is_there_from_the_first_pass_and_says_nothing_without_an_archive(run: Run) -> None:
    async def check(operator: Operator) -> None:
        operator.wish(replicas=3)
        await operator.one_pass()
        assert told(operator) == ("Unknown", "NotConfigured")
        await operator.rest(3)
        assert told(operator) == ("Unknown", "NotConfigured")
        assert events(operator) == []

    run(check)


def test_it_turns_with_what_nodes_tell_and_each_turn_is_an_event(run: Run) -> None:
    async def check(operator: Operator) -> None:
        archives = operator.cluster.world.archives
        operator.wish(replicas=3, archive=ARCHIVE)
        await operator.one_pass()
        assert told(operator) == ("Unknown", "NoAnswer")
        await operator.rest(3)
        # Nodes of a version that does not tell, or that have only just started.
        archives[0] = healthy()
        archives[1] = ill("connecting", "It has not been connected yet.")
        await operator.one_pass()
        assert told(operator) == ("Unknown", "Connecting")
        assert "demo-1, demo-2 have" in operator.condition(KIND)["message"]
        archives.update({place: healthy() for place in range(3)})
        await operator.one_pass()
        assert told(operator) == ("True", "Copying")
        assert events(operator) == []
        archives[1] = ill("unreachable", "Postgres cannot be reached: [Errno 111]", 3_000, 5 << 20, 70.0)
        await operator.one_pass()
        assert told(operator) == ("False", "PostgresUnreachable")
        assert operator.condition(KIND)["message"].startswith("demo-1: Postgres cannot be reached: [Errno 111]. Appends go on.")
        assert events(operator) == [("Warning", "PostgresUnreachable")]
        archives[1] = ill("login", "Postgres: password authentication failed", 3_000, 5 << 20, 70.0)
        await operator.one_pass()
        assert told(operator) == ("False", "LoginRefused")
        # A pod that starts again is neither well nor ill.
        archives[1] = ill("connecting", "It has not been connected yet.")
        await operator.one_pass()
        archives[1] = healthy()
        await operator.one_pass()
        assert told(operator) == ("True", "Copying")
        assert events(operator) == [("Warning", "PostgresUnreachable"), ("Normal", KIND)]
        assert operator.condition("Ready")["status"] == "True"

    run(check)


def test_an_operator_that_comes_new_tells_the_end_of_what_another_told(run: Run) -> None:
    async def check(operator: Operator) -> None:
        archives = operator.cluster.world.archives
        archives.update({place: ill("stopped", "Postgres: shutting down") for place in range(3)})
        operator.wish(replicas=3, archive=ARCHIVE)
        await operator.rest(3)
        assert told(operator) == ("False", "PostgresStopped")
        operator.crashes_at = lambda _place: True
        operator.wish(replicas=3, archive=ARCHIVE, limits={"partsMax": 3})
        await operator.one_pass()
        operator.crashes_at = lambda _place: False
        archives.update({place: healthy() for place in range(3)})
        await operator.rest(3)
        assert events(operator) == [("Warning", "PostgresStopped"), ("Normal", KIND)]

    run(check)


def test_what_is_late_is_told_with_what_waits(run: Run) -> None:
    async def check(operator: Operator) -> None:
        archives = operator.cluster.world.archives
        archives.update({place: ill("late", "Messages come faster.", 1_000_000, 1 << 30, 4_000.0, is_late=True) for place in range(3)})
        operator.wish(replicas=3, archive=ARCHIVE)
        await operator.rest(3)
        assert told(operator) == ("False", "LagHigh")
        message = operator.condition(KIND)["message"]
        assert "About 2,097,152 messages (2.0 GiB) wait, the oldest for more than an hour." in message
        assert "the nodes' disks fill" in message

    run(check)


def test_a_lag_that_grows_rarely_changes_the_words() -> None:
    said = {coarse_lag(healthy(count, 400 * count, 31 + count / 100)) for count in range(1_000, 100_000, 100)}
    assert len(said) < 30


def test_the_status_of_the_command_line_says_what_waits_and_who_does_not_tell() -> None:
    def node(number: int, archive: ArchiveView | None, is_alive: bool = True) -> NodeView:
        return NodeView(number, f"n{number}", "", "", "", is_alive, is_alive, "1", 1, False, False, False, 1, 1, archive)

    def line(archive: ArchiveView | None, *nodes: NodeView) -> str:
        view = ClusterView("c", 1, 0, 1, 3, 1, 1, 0, 0, list(nodes), [], archive)
        text = status_text(view).splitlines()
        return next(one for one in text if one.startswith("archive: "))

    assert line(None, node(1, None)) == "archive: off"
    assert line(healthy(), node(1, healthy()), node(2, None, is_alive=False)) == "archive: healthy, 0 messages (0 B) wait"
    well = healthy(1_200, 3 << 20, 4.0)
    assert (
        line(well, node(1, well), node(2, None))
        == "archive: healthy, 1,200 messages (3.0 MiB) wait, the oldest for 4.0 s; n2 does not tell"
    )
    bad = ill("login", "Postgres: no", 5, 2048, 300.0)
    assert line(bad, node(1, bad)) == "archive: NOT HEALTHY, 5 messages (2.0 KiB) wait, the oldest for 5 min: Postgres: no"
    assert "login 2.0 KiB" in status_text(ClusterView("c", 1, 0, 1, 3, 1, 1, 0, 0, [node(1, bad)], [], bad))


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("login", "LoginRefused"), ("too_many_connections", "TooManyConnections"), ("a new word", "Unknown"), ("", "Unknown")],
)
def test_reasons_are_what_kubernetes_takes(cause: str, reason: str) -> None:
    assert reason_of(cause) == reason


def test_sizes_and_ages_are_short() -> None:
    assert [bytes_text(size) for size in (0, 1023, 1536, 20 << 20, 5 << 40)] == ["0 B", "1023 B", "1.5 KiB", "20 MiB", "5.0 TiB"]
    assert [archive_words.age_text(age) for age in (0.25, 60, 600, 7200 * 5, 86400 * 3)] == ["0.2 s", "60 s", "10 min", "10 h", "3 days"]
