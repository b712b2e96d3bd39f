"""The URI of an archive, as people write and providers hand it out.

Knows libpq's connection URIs (PostgreSQL, "Connection Strings") and what of them asyncpg does not. Invariant: nothing of a URI stands in an
error, since its parts may be parts of a password.
"""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from context_node.archive.errors import ArchiveError

NOT_ASKED = frozenset(
    {
        "channel_binding", "client_encoding", "connect_timeout", "fallback_application_name", "gssencmode", "keepalives",
        "keepalives_count", "keepalives_idle", "keepalives_interval", "sslcompression", "sslsni", "tcp_user_timeout",
    }
)  # fmt: skip
"""Parameters for libpq itself. To asyncpg they would be settings of the server, which knows none of these names."""

HOW = (
    "write postgresql://user:password@host:5432/database?sslmode=verify-full&sslrootcert=FILE, with what is special in the password "
    "percent-encoded (# as %23, / as %2F, ? as %3F, @ as %40)"
)


def usable(given: str) -> str:
    """A URI as asyncpg takes it. Raises `ArchiveError`."""
    uri = given.strip()
    if not uri:
        raise ArchiveError("login", f"the URI of the archive is empty; {HOW}")
    if not uri.startswith(("postgresql://", "postgres://")):
        raise ArchiveError("login", f"the URI of the archive does not begin with postgresql://; {HOW}")
    before, mark, query = uri.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in NOT_ASKED]
    return before + (mark + urlencode(kept) if kept else "")


def read_file(path: Path) -> str:
    """The URI in a file. Raises `ArchiveError`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ArchiveError("login", f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ArchiveError("login", f"{path} is no text in UTF-8; {HOW}") from None
