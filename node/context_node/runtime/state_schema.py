"""The tables of a state database and the statements that write them.

Knows: SQL. Does not know: connections, threads, when anything is written.

Design: messages are clustered by context in one rowid table, so that a window is one range read; what is looked up by
text stands in WITHOUT ROWID tables under the context's ordinal. `graves` holds the ordinals of deleted contexts whose
rows are not all gone yet: deleting a long history takes several transactions, and ordinals are never used again.
"""

from typing import Final

FORMAT_VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE contexts(
    ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, status INTEGER NOT NULL, created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, metadata TEXT NOT NULL, record BLOB NOT NULL);
CREATE INDEX contexts_by_update ON contexts(updated_at DESC, id, status);
CREATE TABLE messages(place INTEGER PRIMARY KEY, body BLOB NOT NULL, info BLOB NOT NULL);
CREATE TABLE message_ids(
    ordinal INTEGER NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, version INTEGER NOT NULL,
    estimate INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY(ordinal, id)) WITHOUT ROWID;
CREATE TABLE keys(
    ordinal INTEGER NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, digest BLOB NOT NULL,
    reply BLOB NOT NULL, PRIMARY KEY(ordinal, key)) WITHOUT ROWID;
CREATE INDEX keys_by_number ON keys(ordinal, number, at);
CREATE TABLE rewrites(
    ordinal INTEGER NOT NULL, version INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY(ordinal, version)) WITHOUT ROWID;
CREATE TABLE policies(
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL, deleted INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE graves(ordinal INTEGER PRIMARY KEY);
"""

PUT_META: Final = "INSERT OR REPLACE INTO meta VALUES(?,?)"
DELETE_CONTEXT: Final = "DELETE FROM contexts WHERE ordinal=?"
DIG_GRAVE: Final = "INSERT OR IGNORE INTO graves VALUES(?)"
PUT_CONTEXT: Final = (
    "INSERT INTO contexts VALUES(?,?,?,?,?,?,?) ON CONFLICT(ordinal) DO UPDATE SET status=excluded.status,"
    " updated_at=excluded.updated_at, metadata=excluded.metadata, record=excluded.record"
)
PUT_MESSAGE: Final = "INSERT OR REPLACE INTO messages VALUES(?,?,?)"
TRIM: Final = "DELETE FROM messages WHERE place BETWEEN ? AND ?"
PUT_MESSAGE_ID: Final = "INSERT OR REPLACE INTO message_ids VALUES(?,?,?,?,?,?)"
PUT_KEY: Final = "INSERT OR REPLACE INTO keys VALUES(?,?,?,?,?,?)"
# Times ascend with numbers, so the first key that is young enough ends the walk: the cost follows what is deleted.
DELETE_KEYS_BELOW: Final = (
    "DELETE FROM keys WHERE ordinal=?1 AND number < max(?2, coalesce((SELECT number FROM keys INDEXED BY keys_by_number"
    " WHERE ordinal=?1 AND at>=?3 ORDER BY number LIMIT 1), 9223372036854775807))"
)
PUT_REWRITE: Final = "INSERT OR REPLACE INTO rewrites VALUES(?,?,?)"
PUT_POLICY: Final = "INSERT OR REPLACE INTO policies VALUES(?,?,?,?)"
DELETE_POLICY: Final = "DELETE FROM policies WHERE name=?"

FIRST_GRAVE: Final = "SELECT ordinal FROM graves ORDER BY ordinal LIMIT 1"
FILL_GRAVE: Final = "DELETE FROM graves WHERE ordinal=?"
SWEEPS: Final = (
    "DELETE FROM messages WHERE place IN (SELECT place FROM messages WHERE place BETWEEN ?1<<32 AND (?1<<32)|4294967295 LIMIT ?2)",
    "DELETE FROM message_ids WHERE ordinal=?1 AND id IN (SELECT id FROM message_ids WHERE ordinal=?1 LIMIT ?2)",
    "DELETE FROM keys WHERE ordinal=?1 AND key IN (SELECT key FROM keys WHERE ordinal=?1 LIMIT ?2)",
    "DELETE FROM rewrites WHERE ordinal=?1 AND version IN (SELECT version FROM rewrites WHERE ordinal=?1 LIMIT ?2)",
)
"""Each deletes at most ?2 rows of context ?1."""

DIGESTED: Final = (
    "SELECT 'contexts', * FROM contexts ORDER BY ordinal",
    "SELECT 'messages', * FROM messages WHERE place>>32 NOT IN graves ORDER BY place",
    "SELECT 'message_ids', * FROM message_ids WHERE ordinal NOT IN graves ORDER BY ordinal, id",
    "SELECT 'keys', * FROM keys WHERE ordinal NOT IN graves ORDER BY ordinal, key",
    "SELECT 'rewrites', * FROM rewrites WHERE ordinal NOT IN graves ORDER BY ordinal, version",
    "SELECT 'policies', * FROM policies ORDER BY name",
)
"""All logical rows in the order of their keys: equal on replicas that applied the same log, whatever their files hold."""
