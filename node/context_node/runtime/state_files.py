"""What the owner's connection of a state database and a worker's both do.

Knows: SQL on a connection that it is given. Does not know: which connection that is, when it is done, how it may fail.
"""

from typing import Any

import apsw

from context_node.runtime import state_schema as sql
from context_node.runtime.state_rows import Applied


def read_meta(connection: apsw.Connection) -> dict[str, Any]:
    """All of `meta`."""
    return {str(key): value for key, value in connection.execute("SELECT key, value FROM meta")}


def read_applied(connection: apsw.Connection) -> Applied:
    """How far the database is. Raises `KeyError` if it was never begun."""
    meta = read_meta(connection)
    return Applied(meta["applied_index"], meta["applied_term"], meta["conf_state"], meta["clock_ms"], meta["machine"], meta["next_ordinal"])


def sweep(connection: apsw.Connection, rows_max: int) -> bool:
    """Delete at most `rows_max` rows of deleted contexts; whether any are left."""
    left = rows_max
    while (ordinal := connection.execute(sql.FIRST_GRAVE).get) is not None:
        for statement in sql.SWEEPS:
            connection.execute(statement, (ordinal, left))
            left -= connection.changes()
            if left <= 0:
                return True
        connection.execute(sql.FILL_GRAVE, (ordinal,))
        left -= 1
        if left <= 0:
            return True
    return False


def carry_over(connection: apsw.Connection, mode: int) -> bool:
    """Checkpoint; whether all that was in the WAL at the start is durable now.

    A passive checkpoint syncs the WAL first and the database only if it reached the end of the WAL; either makes what
    it counts durable, because the WAL starts over only after a checkpoint that synced the database.
    """
    try:
        frames, carried = connection.wal_checkpoint(mode=mode)
    except apsw.BusyError:
        return False
    return frames >= 0 and frames == carried
