"""Who sent a request, and what they may do.

Knows keys by a `KeyVerifier`, the ways in which a key travels (header, WebSocket subprotocol, stream ticket), and scopes. Does not know
how keys are kept. Invariants: without a known key nothing but the open routes is answered; a key is never logged nor echoed, except the
subprotocol that a browser insists to see again; in open mode a page of another origin can neither write nor follow.
"""

import base64
import hmac
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from aiohttp.web_request import BaseRequest

from context_node.api_keys import Identity, Scope
from context_node.http.problems import Forbidden, Unauthenticated
from context_node.http.routing import Route

PROTOCOL = "contextstore.v1"
PROTOCOL_BEARER = "contextstore.bearer."

ANYONE = Identity("open", "open mode", frozenset(Scope))
"""Whoever sends a request in open mode."""


class KeyVerifier(Protocol):
    """What auth needs of a key ring."""

    def verify(self, header: str | None) -> Identity | None: ...
    def verify_key(self, plain: str) -> Identity | None: ...
    def current(self, key_id: str) -> Identity | None: ...
    def on_change(self, tell: Callable[[], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one node. Without `keyring` every request is ANYONE's. `cors_origins` may hold `*` for any."""

    keyring: KeyVerifier | None
    cors_origins: frozenset[str]

    def identify(self, request: BaseRequest, route: Route, ticket_key: str | None = None) -> Identity:
        """Whose request this is, with the scope that the route needs; `ticket_key`: the id of the key that asked for the good stream
        ticket it carries. Raises Unauthenticated, Forbidden."""
        if self.keyring is None:
            if "Origin" in request.headers:
                self.check_origin(request, route)
            return ANYONE
        if route.scope is None:
            return ANYONE
        if ticket_key is not None:
            identity = self.keyring.current(ticket_key)
        else:
            identity = self.keyring.verify(request.headers.get("Authorization"))
            if identity is None and route.is_stream:
                identity = self._of_subprotocol(request)
        if identity is None:
            raise Unauthenticated("Send a known API key as `Authorization: Bearer cs_…`.")
        if route.scope not in identity.scopes:
            raise Forbidden(f"This needs a key with scope {route.scope.value}.", scope=route.scope.value)
        return identity

    def still_allows(self, identity: Identity, scope: Scope | None) -> bool:
        """Whether who was let in with this scope would be let in now. Compares ids, no secrets, so it is cheap."""
        if self.keyring is None or scope is None:
            return True
        now = self.keyring.current(identity.key_id)
        return now is not None and scope in now.scopes

    def check_origin(self, request: BaseRequest, route: Route) -> None:
        """In open mode any page that the user visits could reach the node by the user's browser: only allowed origins may do harm."""
        if not (route.is_write or route.is_stream):
            return
        origin = request.headers["Origin"]
        if origin in self.cors_origins or "*" in self.cors_origins:
            return
        if origin.partition("://")[2] == request.headers.get("Host"):
            return
        raise Forbidden("Pages of this origin may not call this node; add it to cors_origins.", origin=origin[:200])

    def _of_subprotocol(self, request: BaseRequest) -> Identity | None:
        if self.keyring is None:
            return None
        for offered in offered_protocols(request):
            if offered.startswith(PROTOCOL_BEARER):
                return self.keyring.verify_key(offered[len(PROTOCOL_BEARER) :])
        return None


def offered_protocols(request: BaseRequest) -> list[str]:
    """The WebSocket subprotocols that the client offers."""
    return [one.strip() for one in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if one.strip()]


def chosen_protocols(request: BaseRequest) -> tuple[str, ...]:
    """What the server may answer: our own protocol. A bearer one only if nothing else is offered, since browsers insist on one of
    theirs."""
    offered = offered_protocols(request)
    if PROTOCOL in offered or not offered:
        return (PROTOCOL,)
    return tuple(one for one in offered if one.startswith(PROTOCOL_BEARER))[:1]


class Tickets:
    """Short-lived passes for a stream, for where no header can be set: EventSource, an image of a page.

    A ticket names its end and the key that asked for it, whose revocation ends it too; it is signed for its context, and nothing is
    stored. `now` is seconds since the epoch; `secret` must be random, and the same on every node that shall accept the ticket.
    """

    _FORMAT = struct.Struct(">d16s")
    """The end and the signature; the key's id follows."""

    def __init__(self, secret: bytes, ttl_s: float, now: Callable[[], float]) -> None:
        self._secret = secret
        self.ttl_s = ttl_s
        self._now = now

    def issue(self, context_id: str, key_id: str) -> str:
        end, key = self._now() + self.ttl_s, key_id.encode()
        ticket = self._FORMAT.pack(end, self._signature(context_id, end, key)) + key
        return base64.urlsafe_b64encode(ticket).decode().rstrip("=")

    def key_of(self, ticket: str, context_id: str) -> str | None:
        """The id of the key that asked for the ticket; None if it is not ours, not for this context, or over."""
        try:
            given = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))
            end, signature = self._FORMAT.unpack_from(given)
        except (ValueError, struct.error):
            return None
        key = given[self._FORMAT.size :]
        if not hmac.compare_digest(signature, self._signature(context_id, end, key)) or self._now() >= end:
            return None
        return key.decode()

    def _signature(self, context_id: str, end: float, key: bytes) -> bytes:
        # The key's length is signed too, so that no end of the key can be taken for the beginning of a context's id.
        signed = struct.pack(">dI", end, len(key)) + key + context_id.encode()
        return hmac.new(self._secret, signed, sha256).digest()[:16]


def cors_headers(origin: str, allowed: frozenset[str]) -> Mapping[str, str]:
    """What an answer to a page of `origin` carries; nothing if the origin is not allowed."""
    if origin not in allowed and "*" not in allowed:
        return {}
    return {
        "Access-Control-Allow-Origin": "*" if "*" in allowed else origin,
        "Vary": "Origin",
        "Access-Control-Expose-Headers": "ETag, Location, Retry-After, X-Context-Leader, X-Request-Id",
    }


PREFLIGHT_HEADERS = (
    ("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, X-Request-Id"),
    ("Access-Control-Max-Age", "600"),
)
