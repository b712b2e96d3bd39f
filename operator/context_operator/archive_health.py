"""The condition ArchiveHealthy: how the copy of history in Postgres does, from what the nodes tell.

Pure. Invariants: nothing is said that was not seen; a node that does not tell yet is no news, neither good nor bad; of several troubles the
one is told that most waits for.
"""

from collections.abc import Sequence

from context_operator.archive_words import coarse_lag, reason_of
from context_operator.plan import Observed
from context_operator.spec import Cluster, Object
from context_operator.view import ArchiveView

KIND = "ArchiveHealthy"
RUNBOOK = "docs/runbooks.md#the-archive-is-behind"
CONNECTING = "connecting"
"""A node's cause before it has tried for the first time."""


def condition(cluster: Cluster, observed: Observed) -> tuple[bool | None, str, str]:
    """Status, reason and message."""
    if cluster.spec.archive.postgres is None:
        return None, "NotConfigured", "History is on the nodes alone: spec.archive names no database."
    if observed.view is None:
        return None, "NoAnswer", "No node tells how the archive does."
    nodes = [node for node in observed.view.nodes if node.is_alive and node.number in observed.ordinals]
    told = {node.name: node.archive for node in nodes if node.archive is not None and node.archive.cause != CONNECTING}
    ill = {name: archive for name, archive in told.items() if not archive.is_healthy}
    if ill:
        worst = max(ill.values(), key=lambda archive: archive.lag_bytes)
        where = "" if len(ill) == len(nodes) else f"{', '.join(sorted(ill))}: "
        said = worst.reason.rstrip(".")
        return False, reason_of(worst.cause), f"{where}{said}. {_waits(observed.view.archive or worst)} Runbook: {RUNBOOK}"
    if silent := sorted(node.name for node in nodes if node.name not in told):
        return None, "Connecting", f"{', '.join(silent)} {'has' if len(silent) == 1 else 'have'} not copied anything yet."
    if not told or observed.view.archive is None:
        return None, "NoAnswer", "No node tells how the archive does."
    return True, "Copying", coarse_lag(observed.view.archive)


def _waits(archive: ArchiveView) -> str:
    late = " That is more than archive_lag_warn_bytes: the nodes' disks fill." if archive.is_late else ""
    return f"Appends go on. {coarse_lag(archive)}{late}" if archive.lag_messages else "Nothing waits yet."


class Turns:
    """Tells when the copying ends and when it goes on again. What is not known is no turn."""

    def __init__(self) -> None:
        self._was: bool | None = None

    def turned(self, before: Sequence[Object], now: Sequence[Object]) -> tuple[str, str, str] | None:
        """An event (type, reason, sentence), if there is one to tell. `before` are the conditions that stood in the status: an operator
        before this one may have told of a trouble, and its end is news too."""
        if self._was is None:
            self._was = _known(before, True)
        is_healthy = _known(now, self._was)
        if is_healthy == self._was:
            return None
        self._was = is_healthy
        condition = next(one for one in now if one["type"] == KIND)
        if is_healthy:
            return "Normal", KIND, f"History is copied to Postgres again. {condition['message']}"
        what = "Some history" if condition["reason"] == "Hole" else "History"
        return "Warning", condition["reason"], f"{what} is not copied to Postgres. {condition['message']}"


def _known(conditions: Sequence[Object], otherwise: bool) -> bool:
    status = next((one["status"] for one in conditions if one["type"] == KIND), "Unknown")
    return otherwise if status == "Unknown" else bool(status == "True")
