"""Revisions of the state machine: which commands a node understands, and from which feature level on they may be proposed.

Knows the commands by type. Does not know nodes: the system group keeps the level and what each node understands (`contexts/cluster.py`).
Invariant: a command of a revision above the feature level is never proposed, so nodes of two versions apply the same log alike, and a node
can go back to the version before until the level is raised.

To change behaviour: add a command type with a tag of its own, give it the next revision in `SINCE`, raise `NEWEST`, and propose it only
where `Replica.level` allows it. Never change what an existing tag carries or does: an older node drops members that it does not know.
"""

from collections.abc import Mapping
from typing import Final

NEWEST: Final = 1
"""The newest revision that this version understands. A cluster that it begins has this feature level."""

SINCE: Final[Mapping[type, int]] = {}
"""Commands of later revisions than the first."""


class NewerRevision(Exception):
    """The log holds a command that this version does not understand. It must not be skipped: replicas would differ."""


def revision_of(command: object) -> int:
    """The revision that a command came with."""
    return SINCE.get(type(command), 1)
