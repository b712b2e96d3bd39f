"""The tables of the archive, as migrations that are applied once, in order.

Knows SQL. Documented for people in docs/archive.md: what is there may be queried, and is never changed by a newer version without a
migration. `{schema}` is the quoted name of the archive's schema.
"""

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
        PRIMARY KEY (context_id, incarnation, seq)
    );
    CREATE INDEX messages_by_time ON {schema}.messages USING brin (inserted_at);
    CREATE TABLE {schema}.contexts (
        context_id text NOT NULL,
        incarnation bigint NOT NULL,
        shard integer NOT NULL,
        archived_seq bigint NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (context_id, incarnation)
    );
    CREATE INDEX contexts_by_update ON {schema}.contexts (updated_at);
    CREATE TABLE {schema}.fences (shard integer PRIMARY KEY, term bigint NOT NULL);
    COMMENT ON TABLE {schema}.messages IS 'One row a message, never changed. raw is the message byte for byte; body is the same as jsonb,'
        ' NULL where jsonb cannot hold it (a U+0000 in a text).';
    COMMENT ON COLUMN {schema}.messages.incarnation IS 'Tells a context from one of the same id that was purged before.';
    COMMENT ON TABLE {schema}.fences IS 'The newest term of each shard''s leader; an older leader writes nothing any more.';
    """,
)

HAS_SCHEMA: Final = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
MAKE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {schema}"
HAS_META: Final = "SELECT EXISTS (SELECT FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = $1 AND relname = 'meta')"
MAKE_META: Final = "CREATE TABLE IF NOT EXISTS {schema}.meta (key text PRIMARY KEY, value text NOT NULL)"

# The row stays locked until the transaction ends, so that of two leaders of a shard one waits for the other, and the older finds the term
# of the newer. A leader whose machine lost its power in a transaction never says so: the server ends what says nothing, or takes too long,
# for $3 milliseconds, else the next leader would wait for TCP to find out, by default for two hours.
RAISE_FENCE: Final = (
    "WITH raised AS (INSERT INTO {schema}.fences AS held VALUES ($1, $2) ON CONFLICT (shard) DO UPDATE SET term = excluded.term"
    " WHERE held.term <= excluded.term RETURNING term)"
    " SELECT term, set_config('idle_in_transaction_session_timeout', $3::bigint::text, true),"
    " set_config('statement_timeout', $3::bigint::text, true) FROM raised"
)

PUT_MESSAGES: Final = (
    "INSERT INTO {schema}.messages (context_id, incarnation, seq, role, token_count, inserted_at, raw, body)"
    " SELECT c, i, s, r, t, a, w, CASE WHEN plain THEN w::jsonb END"
    " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::timestamptz[], $7::text[], $8::bool[])"
    " AS given(c, i, s, r, t, a, w, plain) ON CONFLICT DO NOTHING"
)

PUT_CONTEXTS: Final = (
    "INSERT INTO {schema}.contexts AS held (context_id, incarnation, shard, archived_seq)"
    " SELECT c, i, $4, s FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS given(c, i, s)"
    " ON CONFLICT (context_id, incarnation) DO UPDATE SET archived_seq = excluded.archived_seq, updated_at = now()"
    " WHERE held.archived_seq < excluded.archived_seq"
)

ERASE: Final = (
    "DELETE FROM {schema}.messages WHERE (context_id, incarnation) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))",
    "DELETE FROM {schema}.contexts WHERE (context_id, incarnation) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))",
)

PAGE: Final = (
    "SELECT seq, raw FROM {schema}.messages WHERE context_id = $1 AND incarnation = $2 AND seq BETWEEN $3 AND $4 ORDER BY seq LIMIT $5"
)
