"""What the log remembers of its node, beside the shards: whose it is, of which cluster, and how its last life ended.

Knows the rows of `meta`. Does not know batches or shards. A note is known here at once, and durable with the next
commit of the log.
"""

from dataclasses import replace

import apsw

from context_node.runtime.log_file import LogFile, LogOptions
from context_node.runtime.log_recovery import first_commit
from context_node.runtime.log_rows import LogIdentity


class LogNotes:
    """`boot`: the number of this start, from 1. `was_scrubbed`: whether the log is new or its last life ended with every file scrubbed.
    `shards`: into how many contexts are hashed, None if the log is new or of a version that did not keep it. `nodes`: the members that
    were known last, packed; empty if there were none. `level`: the feature level that was known last: what is in the log may need as new a
    version. `is_removed`: whether the cluster has said that this store belongs to it no more."""

    def __init__(self, path: str, identity_if_new: LogIdentity, options: LogOptions) -> None:
        """Open the file of the log and read them. Raises `StorageError`; `StorageFailed` also for a format that is not known."""
        self.file = LogFile(path, options, lambda database: self._read(database, path, identity_if_new))

    def _read(self, database: apsw.Connection, path: str, identity_if_new: LogIdentity) -> None:
        self.boot, self.identity, self.was_scrubbed = first_commit(database, path, identity_if_new)
        notes = dict(database.execute("SELECT key, value FROM meta WHERE key IN ('shards', 'nodes', 'level', 'removed')"))
        self.shards: int | None = notes.get("shards")
        self.nodes: bytes = notes.get("nodes") or b""
        self.level: int = notes.get("level") or 1
        self.is_removed = notes.get("removed") is not None

    def note_shards(self, count: int) -> None:
        """Into how many shards contexts are hashed."""
        self._note("shards", count)
        self.shards = count

    def note_nodes(self, nodes: bytes) -> None:
        """The members of the cluster as they are known now, packed."""
        self._note("nodes", nodes)
        self.nodes = nodes

    def note_level(self, level: int) -> None:
        """The feature level as it is known now."""
        self._note("level", level)
        self.level = level

    def note_removed(self) -> None:
        """This store belongs to its cluster no more."""
        self._note("removed", 1)
        self.is_removed = True

    def note_scrubbed(self) -> None:
        """No file holds bytes of a purged context: known as `was_scrubbed` to the next start, and to no later one."""
        self._note("scrubbed", self.boot)

    def note_cluster(self, cluster_id: str) -> None:
        """The id of the cluster that this store belongs to. Only a log without shards may have another than it had."""
        self._note("cluster_id", cluster_id)
        self.identity = replace(self.identity, cluster_id=cluster_id)

    def _note(self, key: str, value: int | str | bytes) -> None:
        self.file.check_usable()
        self.file.bind("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))
