"""The opaque cursor of a list: where the page before ended, and a mark of the query it belongs to."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

import msgspec

from context_node.contexts.refusals import InvalidRequest
from context_node.contexts.requests import ListContexts

CURSOR_CHARS_MAX = 1024


def encode_cursor(request: ListContexts, last: tuple[int, str]) -> str:
    """The cursor after the entry `last`: (updated_at in ms, id)."""
    return urlsafe_b64encode(msgspec.msgpack.encode((_mark(request), *last))).decode().rstrip("=")


def decode_cursor(request: ListContexts) -> tuple[int, str]:
    """Where the page before ended. Raises `InvalidRequest` for a cursor that is none, or that belongs to another query."""
    text = request.cursor or ""
    try:
        if len(text) > CURSOR_CHARS_MAX:
            raise ValueError
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        mark, updated_at, context_id = msgspec.msgpack.decode(data, type=tuple[bytes, int, str])
    except (ValueError, msgspec.DecodeError):
        raise InvalidRequest("cursor is not one that this list gave; start again without it.", field="cursor") from None
    if mark != _mark(request):
        raise InvalidRequest("cursor belongs to a list with other filters or order; start again without it.", field="cursor")
    if not -(2**63) <= updated_at < 2**63:
        raise InvalidRequest("cursor is not one that this list gave; start again without it.", field="cursor")
    return updated_at, context_id


def _mark(request: ListContexts) -> bytes:
    said = msgspec.json.encode([request.prefix, request.status, request.order, sorted(request.metadata.items())])
    return blake2b(said, digest_size=6).digest()
