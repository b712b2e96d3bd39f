"""The tables of the archive, as migrations that are applied once, in order.

Knows SQL. Documented for people in docs/archive.md: what is there may be queried, and is never changed by a newer version without a
migration. `{schema}` is the quoted name of the archive's schema.
"""

import re
from typing import Final

MIGRATIONS: Final = (
    """
    CREATE TABLE {schema}.messages (
        context_id text NOT NULL,
        incarnation bigint NOT NULL,
        seq bigint NOT NULL,
        role text NOT NULL,
        token_count bigint NOT NULL,
        inserted_at timestamptz NOT NULL,
        body jsonb,
        raw text NOT NULL,
        node_data bytea NOT NULL,
        PRIMARY KEY (context_id, incarnation, seq)
    );
    CREATE INDEX messages_by_time ON {schema}.messages USING brin (inserted_at);
    CREATE TABLE {schema}.contexts (
        context_id text NOT NULL,
        incarnation bigint NOT NULL,
        shard integer NOT NULL,
        archived_seq bigint NOT NULL,
        revision bigint NOT NULL,
        status text NOT NULL,
        metadata jsonb,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        archived_at timestamptz NOT NULL DEFAULT now(),
        node_data bytea NOT NULL,
        PRIMARY KEY (context_id, incarnation)
    );
    CREATE INDEX contexts_by_update ON {schema}.contexts (updated_at);
    CREATE TABLE {schema}.policies (name text PRIMARY KEY, generation bigint NOT NULL, node_data bytea NOT NULL);
    CREATE TABLE {schema}.fences (shard integer PRIMARY KEY, term bigint NOT NULL);
    COMMENT ON TABLE {schema}.messages IS 'One row a message, never changed. raw is the message byte for byte; body is the same as jsonb,'
        ' NULL where jsonb cannot hold it (a U+0000 in a text).';
    COMMENT ON COLUMN {schema}.messages.incarnation IS 'Tells a context from one of the same id that was purged before.';
    COMMENT ON COLUMN {schema}.messages.node_data IS 'What only nodes read: costs, and what the message id remembers.';
    COMMENT ON COLUMN {schema}.contexts.node_data IS 'What only nodes read: configuration, counters and window as of this revision.';
    COMMENT ON TABLE {schema}.fences IS 'The newest term of each shard''s leader; an older leader writes nothing any more.';
    """,
    # ANALYZE reads 300 rows for each unit of the largest target, by default 30,000 pages whenever the table has grown by a tenth: more from
    # the disk than all that is written meanwhile. The primary key serves the reads, and nobody finds a text by its statistics.
    """
    ALTER TABLE {schema}.messages
        ALTER COLUMN context_id SET STATISTICS 10, ALTER COLUMN incarnation SET STATISTICS 10, ALTER COLUMN seq SET STATISTICS 10,
        ALTER COLUMN role SET STATISTICS 10, ALTER COLUMN token_count SET STATISTICS 10, ALTER COLUMN inserted_at SET STATISTICS 10,
        ALTER COLUMN body SET STATISTICS 0, ALTER COLUMN raw SET STATISTICS 0, ALTER COLUMN node_data SET STATISTICS 0;
    """,
)

HAS_SCHEMA: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
MAKE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {schema}"
HAS_META: Final = "SELECT EXISTS (SELECT FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 AND relname = 'meta')"
MAKE_META: Final = "CREATE TABLE IF NOT EXISTS {schema}.meta (key text PRIMARY KEY, value text NOT NULL)"

# The row stays locked until the transaction ends, so that of two leaders of a shard one waits for the other, and the older finds the term
# of the newer. A leader whose machine lost its power in a transaction never says so: the server ends what says nothing, or takes too long,
# for $3 milliseconds, else the next leader would wait for TCP to find out, by default for two hours.
# A commit that waits for no disk (synchronous_commit off) would confirm what a crash takes back.
# The row's xmin is the transaction that raised the fence last.
_RAISED: Final = (
    "WITH raised AS (INSERT INTO {schema}.fences AS held VALUES ($1, $2) ON CONFLICT (shard) DO UPDATE SET term = excluded.term"
    " WHERE held.term <= excluded.term RETURNING term, xmin::text AS raised_by)"
)
_RAISED_AGAIN: Final = (
    "WITH raised AS (UPDATE {schema}.fences AS held SET term = $2 WHERE held.shard = $1 AND held.term = $2 AND held.xmin::text = $3"
    " RETURNING term, xmin::text AS raised_by)"
)
_SYNCED: Final = (
    " set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
    " ELSE current_setting('synchronous_commit') END, true)"
)
RAISE_FENCE: Final = (
    _RAISED + " SELECT raised_by, set_config('idle_in_transaction_session_timeout', least($3::bigint, 15000)::text, true),"
    " set_config('statement_timeout', $3::bigint::text, true)," + _SYNCED + " FROM raised"
)

LESS_THAN: Final = (
    "SELECT c, coalesce(held.archived_seq, 0) AS has FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS given(c, i, s)"
    " LEFT JOIN {schema}.contexts AS held ON held.context_id = c AND held.incarnation = i WHERE coalesce(held.archived_seq, 0) < s"
)
"""The contexts of which the archive has less than is believed, with what it has."""

_ADDED: Final = (
    "INSERT INTO {schema}.messages (context_id, incarnation, seq, role, token_count, inserted_at, raw, body, node_data)"
    " SELECT c, i, s, r, t, a, w, CASE WHEN plain THEN w::jsonb END, n"
    " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::timestamptz[], $7::text[], $8::bool[], $9::bytea[])"
    " AS given(c, i, s, r, t, a, w, plain, n)"
)
PUT_MESSAGES: Final = _ADDED + " ON CONFLICT (context_id, incarnation, seq) DO NOTHING"

DIFFERING: Final = (
    "SELECT min(s) FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS given(c, i, s, w) JOIN {schema}.messages AS held"
    " ON held.context_id = c AND held.incarnation = i AND held.seq = s WHERE held.raw <> w"
)

_NOTED: Final = (
    "INSERT INTO {schema}.contexts AS held"
    " (context_id, incarnation, shard, archived_seq, revision, status, metadata, created_at, updated_at, node_data)"
    " SELECT c, i, $10, s, r, t, CASE WHEN plain THEN m::jsonb END, b, u, n FROM unnest($1::text[], $2::bigint[], $3::bigint[],"
    " $4::bigint[], $5::text[], $6::text[], $7::bool[], $8::timestamptz[], $9::timestamptz[], $11::bytea[])"
    " AS given(c, i, s, r, t, m, plain, b, u, n)"
)
_OR_RENEWED: Final = (
    " ON CONFLICT (context_id, incarnation) DO UPDATE SET archived_seq = greatest(held.archived_seq, excluded.archived_seq),"
    " revision = excluded.revision, status = excluded.status, metadata = excluded.metadata, updated_at = excluded.updated_at,"
    " archived_at = now(), node_data = excluded.node_data WHERE held.revision <= excluded.revision"
)
PUT_CONTEXTS: Final = _NOTED + _OR_RENEWED


def _taking(statement: str, *numbers: int) -> str:
    """A statement whose parameters are those of these numbers."""
    return re.sub(r"\$(\d+)", lambda found: f"${numbers[int(found[1]) - 1]}", statement)


_MAY: Final = " WHERE EXISTS (SELECT FROM may)"
# Each column of a context's messages comes as one text: to make arrays of rows takes a node twice as long, and Postgres no less.
_ADDED_JOINED: Final = (
    "INSERT INTO {schema}.messages (context_id, incarnation, seq, role, token_count, inserted_at, raw, body, node_data)"
    " SELECT c, i, before + place, r, t::bigint, timestamptz 'epoch' + a::bigint * interval '1 microsecond', w,"
    " CASE WHEN unfit IS NULL OR get_byte(unfit, place::integer - 1) = 0 THEN w::jsonb END, decode(n, 'hex')"
    " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bytea[])"
    " AS given(c, i, before, ws, rs, ts, times, ns, unfit),"
    " LATERAL ROWS FROM (" + ", ".join(f"unnest(string_to_array({one}, E'\\x1e'))" for one in ("ws", "rs", "ts", "times", "ns")) + ")"
    " WITH ORDINALITY AS message(w, r, t, a, n, place)"
)
ADD_BATCH: Final = (
    f"{_RAISED_AGAIN}, behind AS ({_taking(LESS_THAN, 4, 5, 6)}), may AS (SELECT FROM raised WHERE NOT EXISTS (SELECT FROM behind)),"
    f" added AS ({_taking(_ADDED_JOINED, 4, 5, *range(7, 14))}{_MAY}),"
    f" noted AS ({_taking(_NOTED, 4, 5, *range(14, 23))}{_MAY}{_OR_RENEWED})"
    f" SELECT raised_by, {_SYNCED}, (SELECT array_agg(c) FROM behind) AS behind, (SELECT array_agg(has) FROM behind) AS has FROM raised"
)
"""A whole batch of new rows in one statement, which is its own transaction: with shard, term and who raised the fence last, the parameters
of `LESS_THAN`, `rows.joined_columns`, and those of `PUT_CONTEXTS` but for its first two, which are the same. Without a row somebody else
has raised the fence since; with contexts in `behind` nothing was written either. What asks whether it may reads from `raised`, so the
fence's row is locked before a row is added. Whoever gave it up does not know whether the server still comes to it, and so raises the fence
before anything else: it is too late then, also where the next transaction erased what it would write."""

ERASE: Final = (
    "DELETE FROM {schema}.messages WHERE (context_id, incarnation) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))",
    "DELETE FROM {schema}.contexts WHERE (context_id, incarnation) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))",
)

PUT_POLICY: Final = (
    "INSERT INTO {schema}.policies AS held VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET generation = excluded.generation,"
    " node_data = excluded.node_data WHERE held.generation <= excluded.generation"
)

# What comes before a row is summed up, so that the first row comes whatever its size.
_READ: Final = (
    "SELECT seq, raw, node_data FROM (SELECT seq, raw, node_data, sum(octet_length(raw)) OVER (ORDER BY seq {{order}}) - octet_length(raw)"
    " AS before FROM {schema}.messages WHERE context_id = $1 AND incarnation = $2 AND seq BETWEEN $3 AND $4) AS found"
    " WHERE before < $5 ORDER BY seq {{order}}"
)
READ: Final = _READ.replace("{{order}}", "ASC")
READ_DESCENDING: Final = _READ.replace("{{order}}", "DESC")

META: Final = "SELECT key, value FROM {schema}.meta"
PUT_META: Final = "INSERT INTO {schema}.meta VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"

# What `contextstore restore` and `verify-archive` ask. Ids are ordered by their bytes, as the nodes order them, whatever the database's
# collation is. Large records are read one by one.
HELD: Final = "SELECT to_regclass($1) IS NOT NULL"
TOTALS: Final = "SELECT count(*), coalesce(sum(archived_seq), 0)::bigint FROM {schema}.contexts WHERE starts_with(context_id, $1)"
POLICIES: Final = "SELECT node_data FROM {schema}.policies ORDER BY name"
CONTEXTS: Final = (
    "SELECT context_id, incarnation, archived_seq, CASE WHEN octet_length(node_data) <= 65536 THEN node_data END FROM {schema}.contexts"
    ' WHERE starts_with(context_id, $1) ORDER BY context_id COLLATE "C", incarnation DESC'
)
RECORD: Final = "SELECT node_data FROM {schema}.contexts WHERE context_id = $1 AND incarnation = $2"
MARK: Final = "SELECT archived_seq FROM {schema}.contexts WHERE context_id = $1 AND incarnation = $2"
NEWEST_COSTS: Final = (
    "SELECT seq, token_count FROM {schema}.messages WHERE context_id = $1 AND incarnation = $2 AND seq <= $3 ORDER BY seq DESC LIMIT $4"
)
SEQS_AFTER: Final = (
    "SELECT seq FROM {schema}.messages WHERE context_id = $1 AND incarnation = $2 AND seq > $3 AND seq <= $4 ORDER BY seq LIMIT $5"
)
NEXT_SEQ: Final = "SELECT min(seq) FROM {schema}.messages WHERE context_id = $1 AND incarnation = $2 AND seq >= $3"
STRAY: Final = (
    "SELECT m.context_id, m.incarnation, count(*), max(m.seq) FROM {schema}.messages AS m LEFT JOIN {schema}.contexts AS c"
    " USING (context_id, incarnation) WHERE starts_with(m.context_id, $1) AND (c.archived_seq IS NULL OR m.seq > c.archived_seq)"
    " GROUP BY m.context_id, m.incarnation"
)
NEWEST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM {schema}.messages WHERE context_id = $1 AND incarnation = $2"
