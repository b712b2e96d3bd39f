"""How the archive does, as a node tells the others and administrators. What makes it is above the runtime, which only hands it on."""

from collections.abc import Iterable

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


def total(views: Iterable[ArchiveView | None]) -> ArchiveView | None:
    """All nodes' in one; None where no node has an archive or tells of it. Of several troubles the one that most waits for."""
    told = [view for view in views if view is not None]
    if not told:
        return None
    worst = min(told, key=lambda view: (view.is_healthy, -view.lag_bytes))
    return ArchiveView(
        worst.is_healthy,
        any(view.is_late for view in told),
        worst.cause,
        worst.reason,
        sum(view.lag_messages for view in told),
        sum(view.lag_bytes for view in told),
        max(view.lag_s for view in told),
    )
