"""One request on its way through the edge, and how its body and headers are read.

Knows aiohttp's request. Does not know the service. Invariants: a body is never read beyond its limit; reading ends in bytes or in a
refusal.
"""

import re

from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_request import BaseRequest

from context_node.api_keys import Identity
from context_node.contexts.refusals import InvalidRequest, TooLarge
from context_node.http.problems import ExpectationFailed, UnsupportedMediaType
from context_node.http.routing import Route

KEY_CHARACTERS_MAX = 256
_KEY = re.compile(r"[!-~]{1,256}\Z")
_ID = re.compile(r"[A-Za-z0-9._:~@-]+\Z")


class Call:
    """A request with what the edge found out about it. `parameters` are those of the path, percent-decoded; `query` is raw."""

    __slots__ = ("bytes_in", "identity", "parameters", "query", "request", "request_id", "route")

    def __init__(
        self, request: BaseRequest, route: Route, parameters: tuple[str, ...], query: str, request_id: str, identity: Identity
    ) -> None:
        self.request = request
        self.route = route
        self.parameters = parameters
        self.query = query
        self.request_id = request_id
        self.identity = identity
        self.bytes_in = 0


def id_of(call: Call, bytes_max: int, what: str = "context id", place: int = 0) -> str:
    """A path parameter as an id. Raises `InvalidRequest` if no context or policy can have it."""
    given = call.parameters[place]
    if len(given) > bytes_max:
        raise InvalidRequest(f"A {what} has at most {bytes_max} bytes; this one has {len(given)}.", field="id", bytes_max=bytes_max)
    if not _ID.match(given):
        raise InvalidRequest(f"A {what} is made of A-Z a-z 0-9 . _ : ~ @ - and has at least one of them.", field="id")
    if given == "." or given == "..":
        # Every URL library resolves these before it sends them, so such a context could never be reached again.
        raise InvalidRequest(f"A {what} cannot be . or .. because URLs give them another meaning.", field="id")
    return given


def key_of(call: Call) -> str | None:
    """The idempotency key: 1 to 256 visible ASCII characters, or None. Raises `InvalidRequest`."""
    headers = call.request.headers
    key = headers.get("Idempotency-Key")
    if key is None:
        return None
    if not _KEY.match(key):
        raise InvalidRequest(f"Idempotency-Key must have 1 to {KEY_CHARACTERS_MAX} visible ASCII characters.", field="Idempotency-Key")
    if len(headers.getall("Idempotency-Key")) > 1:
        raise InvalidRequest("Idempotency-Key is given twice.", field="Idempotency-Key")
    return key


def check_content_type(call: Call, accepted: tuple[str, ...]) -> str:
    """The body's content type, the first accepted one if none is given. Raises `UnsupportedMediaType`."""
    given = call.request.headers.get("Content-Type")
    if given is None or given == accepted[0]:
        return accepted[0]
    media_type, _, parameters = given.partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.strip().lower().replace(" ", "").replace('"', "")
    if media_type not in accepted or (charset.startswith("charset=") and charset not in ("charset=utf-8", "charset=utf8")):
        raise UnsupportedMediaType(f"Send the body as {' or '.join(accepted)} in UTF-8.", given=given[:100], accepted=list(accepted))
    return media_type


async def read_body(call: Call, bytes_max: int) -> bytes:
    """The whole body. Raises `TooLarge` as soon as it is above `bytes_max`, and `InvalidRequest` if it breaks off or cannot be
    decompressed."""
    request = call.request
    length = request.headers.get("Content-Length")
    if length is not None and len(length) > 7 and int(length) > bytes_max:
        raise _too_large(bytes_max)
    if "Expect" in request.headers:
        await _expected(request)
    content = request.content
    try:
        data = await content.readany()
        if not content.at_eof():
            chunks = [data]
            size = len(data)
            while size <= bytes_max:
                chunk = await content.readany()
                if not chunk:
                    break
                chunks.append(chunk)
                size += len(chunk)
            data = b"".join(chunks)
    except (HttpProcessingError, web.RequestPayloadError, ConnectionError) as error:
        why = type(error).__name__
        raise InvalidRequest("The body broke off or its encoding is wrong; send it again.", field="body", why=why) from None
    if len(data) > bytes_max:
        raise _too_large(bytes_max)
    call.bytes_in = len(data)
    return data


async def _expected(request: BaseRequest) -> None:
    """`Expect: 100-continue` is met only here, when the body is wanted: a request refused by its head never sends it."""
    if request.headers["Expect"].lower() != "100-continue":
        raise ExpectationFailed("Only the expectation 100-continue is known; leave the header out.")
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"The body is larger than {bytes_max} bytes; send it in parts.", field="body", bytes_max=bytes_max)
