"""Planted bugs about clusters of two versions; the next version is planted with each of them."""

from support.next_version import NEXT_VERSION
from support.planted import Mutant

CLUSTER_STATE = "context_node.contexts.cluster"
REPLICA = "context_node.runtime.replica"


def _mutant(name: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, "ARCHITECTURE.md, feature level; §4.4 version skew", (*NEXT_VERSION.edits, *edits))


MUTANTS = (
    _mutant(
        "the feature level is raised though a member does not understand it",
        (CLUSTER_STATE, "        if behind:\n", "        if behind and command.level < 0:\n"),
    ),
    _mutant(
        "a node that understands less than the feature level is let in again",
        (CLUSTER_STATE, "        if revision < self.level:\n", "        if revision < 0:\n"),
    ),
    _mutant(
        "a leader uses what its own version knows, whatever the feature level",
        (REPLICA, "if (revision := revision_of(command)) > self.level():", "if (revision := revision_of(command)) > self.revision:"),
        (REPLICA, "is AppendMessages and self.level() >= 2:", "is AppendMessages and self.revision >= 2:"),
    ),
)
