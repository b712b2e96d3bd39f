"""How the archive does, as a node tells the others and administrators. What makes it is above the runtime, which only hands it on."""

from collections.abc import Mapping

import msgspec


class ArchiveView(msgspec.Struct, frozen=True):
    """The archive as one node sees it, or as all of them together do. It is not healthy while Postgres does not take what it is given, or
    `is_late`: more waits than `archive_lag_warn_bytes`. `cause` is one word, as in `contextstore_archive_failures_total{cause}`, or
    `connecting` or `late`, and empty if all is well; `reason` is for people. The lag is of the shards that the node leads: messages, their
    bytes, and the age of the oldest in seconds."""

    is_healthy: bool
    is_late: bool
    cause: str
    reason: str
    lag_messages: int
    lag_bytes: int
    lag_s: float


def total(views: Mapping[str, ArchiveView | None]) -> ArchiveView | None:
    """That of all living nodes, by name, in one; None where no node has an archive or tells of it. Of several troubles the one that most
    waits for. A node without one beside nodes with one is trouble: nobody archives what it leads."""
    told = [view for view in views.values() if view is not None]
    if not told:
        return None
    worst = min(told, key=lambda view: (view.is_healthy, -view.lag_bytes))
    silent = sorted(name for name, view in views.items() if view is None)
    if worst.is_healthy and silent:
        reason = f"Nodes that tell of no archive: {', '.join(silent)}. What they lead is not archived; give all nodes the same settings."
        worst = msgspec.structs.replace(worst, is_healthy=False, cause="not_everywhere", reason=reason)
    return ArchiveView(
        worst.is_healthy,
        any(view.is_late for view in told),
        worst.cause,
        worst.reason,
        sum(view.lag_messages for view in told),
        sum(view.lag_bytes for view in told),
        max(view.lag_s for view in told),
    )
