"""The query behind a list of contexts: filters, order, and where the last page ended.

Knows: the columns of `contexts`. Does not know: cursors as clients see them, other shards.

Invariant: a page begins strictly after `after` in the chosen order, so that no row is given twice and none left out that
did not move meanwhile. SQLite compares text as UTF-8 bytes, which is the order of code points and of Python's strings.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final, Literal

Order = Literal["id", "-updated_at"]
Value = int | float | str | None

_COLUMNS: Final = "SELECT ordinal, id, status, created_at, updated_at, metadata, record FROM contexts"

# One top-level key is compared by the text of its value, numbers also by their value (1 and 1.0). Objects and arrays
# never match.
_METADATA: Final = (
    "EXISTS (SELECT 1 FROM json_each(metadata) AS pair WHERE pair.key=? AND CASE pair.type"
    " WHEN 'text' THEN pair.atom=? WHEN 'integer' THEN pair.atom=? WHEN 'real' THEN pair.atom=?"
    " WHEN 'true' THEN 'true'=? WHEN 'false' THEN 'false'=? WHEN 'null' THEN 'null'=? ELSE 0 END)"
)


def listing(
    *,
    prefix: str,
    status: int | None,
    metadata: Mapping[str, str],
    order: Order,
    after: str | tuple[int, str] | None,
    limit: int,
) -> tuple[str, Sequence[Value]]:
    """The SQL and its bindings; see `StateStore.list_contexts`."""
    where: list[str] = []
    values: list[Value] = []
    if prefix:
        where.append("id>=?")
        values.append(prefix)
        end = prefix_end(prefix)
        if end is not None:
            where.append("id<?")
            values.append(end)
    if status is not None:
        where.append("status=?")
        values.append(status)
    if isinstance(after, tuple):
        where.append("updated_at<=? AND (updated_at<? OR id>?)")
        values += [after[0], after[0], after[1]]
    elif after is not None:
        where.append("id>?")
        values.append(after)
    for key, text in metadata.items():
        where.append(_METADATA)
        number = _number(text)
        values += [key, text, number, number, text, text, text]
    sql = f"{_COLUMNS} WHERE {' AND '.join(where)}" if where else _COLUMNS
    values.append(limit)
    return f"{sql} ORDER BY {'id' if order == 'id' else 'updated_at DESC, id'} LIMIT ?", values


def prefix_end(prefix: str) -> str | None:
    """The least text above all that begin with `prefix`; None if there is none."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            following = 0xE000 if last == 0xD7FF else last + 1
            return prefix[:-1] + chr(following)
        prefix = prefix[:-1]
    return None


def _number(text: str) -> int | float | None:
    """The number that `text` writes in JSON and SQLite can compare, None if it is none."""
    if len(text) > 400:
        return None
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63 else value
