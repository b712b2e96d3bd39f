"""How the archive does, in words: for `cluster status` and for the resource's condition.

Pure. Invariant: words about a lag are coarse, since they stand in the status: they change when something has, not at every look.
"""

from context_operator.view import ArchiveView, ClusterView

FRESH_S = 30.0
"""A message that waits no longer than this waits for nothing but its turn."""

REASONS = {
    "unreachable": "PostgresUnreachable",
    "timeout": "PostgresTimeout",
    "login": "LoginRefused",
    "permission": "PermissionDenied",
    "disk_full": "PostgresDiskFull",
    "stopped": "PostgresStopped",
    "foreign": "ForeignArchive",
    "other_archive": "OtherArchive",
    "newer_schema": "NewerSchema",
    "late": "LagHigh",
}
"""A condition's reason by a node's cause; of others the word itself."""


def reason_of(cause: str) -> str:
    """A node's cause as Kubernetes writes reasons."""
    return REASONS.get(cause) or "".join(word.capitalize() for word in cause.split("_") if word.isalnum()) or "Unknown"


def status_line(view: ClusterView) -> str:
    """The archive in `cluster status`."""
    archive = view.archive
    if archive is None:
        return "archive: off"
    waits = f"{archive.lag_messages:,} messages ({bytes_text(archive.lag_bytes)}) wait"
    if archive.lag_messages:
        waits += f", the oldest for {age_text(archive.lag_s)}"
    silent = [node.name for node in view.nodes if node.is_alive and node.archive is None]
    untold = f"; {', '.join(silent)} {'does' if len(silent) == 1 else 'do'} not tell" if silent else ""
    if archive.is_healthy:
        return f"archive: healthy, {waits}{untold}"
    return f"archive: NOT HEALTHY, {waits}{untold}: {archive.reason}"


def node_cell(archive: ArchiveView | None) -> str:
    """A node's archive in the table of `cluster status`."""
    if archive is None:
        return "-"
    return f"{'ok' if archive.is_healthy else archive.cause} {bytes_text(archive.lag_bytes)}"


def coarse_lag(archive: ArchiveView) -> str:
    """What waits, as a sentence."""
    if archive.is_healthy and archive.lag_s <= FRESH_S:
        return "What is written is copied within seconds."
    count, size = _coarse(archive.lag_messages), bytes_text(_coarse(archive.lag_bytes))
    return f"About {count:,} messages ({size}) wait, the oldest for {_coarse_age(archive.lag_s)}."


def bytes_text(number: float) -> str:
    """Bytes with a unit, two or three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.1f} {unit}" if unit != "B" and number < 10 else f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def age_text(seconds: float) -> str:
    """A time span in its largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def _coarse(number: int) -> int:
    """The power of two below it."""
    return 1 << max(0, number.bit_length() - 1)


def _coarse_age(seconds: float) -> str:
    """Only so exact that it changes a few times an hour."""
    steps = ((60, "some seconds"), (300, "more than a minute"), (900, "more than 5 minutes"), (3600, "more than 15 minutes"))
    for limit, words in (*steps, (6 * 3600, "more than an hour"), (86400, "more than 6 hours"), (2 * 86400, "more than a day")):
        if seconds < limit:
            return words
    return f"more than {seconds // 86400:.0f} days"
