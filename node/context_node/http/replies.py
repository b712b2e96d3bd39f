"""An answer as a handler gives it: status, body, headers. What HTTP makes of it on the wire is `edge`'s and `wire`'s business.

Knows no request. Invariant: a `Reply` with a body says its content type.
"""

from collections.abc import Iterable
from dataclasses import dataclass

JSON = "application/json"
Header = tuple[str, str]


@dataclass(slots=True)
class Reply:
    """An answer that is whole in memory. `content_type` is empty exactly if there is no body."""

    status: int
    body: bytes
    content_type: str
    headers: tuple[Header, ...] = ()


def json_reply(status: int, body: bytes, headers: Iterable[Header] = ()) -> Reply:
    """JSON that is ready as bytes."""
    return Reply(status, body, JSON, tuple(headers))


def empty_reply(status: int, headers: Iterable[Header] = ()) -> Reply:
    """204 and 304: no body at all."""
    return Reply(status, b"", "", tuple(headers))
