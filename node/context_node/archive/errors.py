"""What can be wrong with an archive, each with one word for metrics and a sentence for people.

Knows no Postgres. Invariant: no message holds a password, or what somebody wrote.
"""

from collections.abc import Mapping


class ArchiveError(Exception):
    """Postgres did not do what it was asked. `cause` is one word for metrics; the message is for people and holds no password."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Fenced(ArchiveError):
    """A newer leader of the shard has written: this one has been replaced, or will learn so soon."""

    def __init__(self, shard: int) -> None:
        super().__init__("fenced", f"a newer leader of shard {shard} writes to the archive")


class Behind(ArchiveError):
    """The archive has less of contexts than it had confirmed: it was brought back from a backup, or somebody deleted rows. `held`: by
    context up to where it has messages by its own account."""

    def __init__(self, held: Mapping[str, int]) -> None:
        super().__init__("hole", f"the archive has less than it had confirmed of {len(held)} contexts: was it brought back from a backup?")
        self.held = held
