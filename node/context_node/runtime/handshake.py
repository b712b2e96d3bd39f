"""How two nodes convince each other that they know the cluster's secret, before anything else is said.

Three messages: the dialer's hello, the listener's hello, the dialer's proof. Each carries a MAC over everything said so far, keyed with the
secret; the keys of the session come from the same transcript. Knows bytes and identities; does not know sockets, time or frames.
Invariants: a side is done only after the other proved the secret for this transcript, which holds a fresh nonce of each; whoever did not
prove it gets no other answer than "refused". Integrity only: nothing is encrypted, and names and store ids can be read on the way.
"""

import hmac
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

import msgspec

MAGIC = b"CTXP"
VERSION = 1
SECRET_BYTES_MIN = 16
NONCE_BYTES = 32
BODY_BYTES_MAX = 4096
NODE_NUMBERS = 1 << 24
NAME_CHARS_MAX = 255

_HEAD_BYTES = len(MAGIC) + 1 + 2
_MAC_BYTES = 32
_NO_PROOF = bytes(_MAC_BYTES)

_Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a node is: `cluster_id` in hex, empty while it is no member; `node` in [0, 2**24), 0 while it is no member; `store`: the UUID of
    its disk, in hex; `name` for people. Raises ValueError for what no handshake could say."""

    cluster_id: str
    node: int
    store: str
    name: str

    def __post_init__(self) -> None:
        if not 0 <= self.node < NODE_NUMBERS:
            raise ValueError(f"a node's number is in [0, {NODE_NUMBERS}), not {self.node}")
        if max(len(self.cluster_id), len(self.store), len(self.name)) > NAME_CHARS_MAX:
            raise ValueError(f"cluster id, store and name have at most {NAME_CHARS_MAX} characters each")


class HandshakeRefused(Exception):
    """The handshake failed; the message says why. `answer` is what the other side is still to be sent."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Session:
    """What a handshake gave: the peer, one key for each direction, and what came behind the last message."""

    peer: PeerIdentity
    send_key: bytes
    receive_key: bytes
    rest: bytes


class _Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """`expects`: the store that the dialer means to reach; empty for any, and from a listener."""

    cluster_id: _Name
    node: Annotated[int, msgspec.Meta(ge=0, lt=NODE_NUMBERS)]
    store: _Name
    name: _Name
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    expects: _Name


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    """The dialer agrees; its MAC says everything else."""


class _Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    reason: _Name


_Body = _Hello | _Proof | _Refused
_bodies: "msgspec.msgpack.Decoder[_Body]" = msgspec.msgpack.Decoder(_Body)
_encode = msgspec.msgpack.Encoder().encode


def root_key(secret: bytes) -> bytes:
    """The key for all MACs of handshakes. Raises ValueError for a secret that is too short."""
    if len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"a cluster's secret has at least {SECRET_BYTES_MIN} bytes, not {len(secret)}")
    return blake2b(secret, digest_size=32, person=b"ctxp root").digest()


class Handshake:
    """One side of one handshake. `expects` is None for the listener; for the dialer the store it means to reach, empty for any."""

    def __init__(self, me: PeerIdentity, root: bytes, nonce: bytes, expects: str | None) -> None:
        self._me = me
        self._root = root
        self._nonce = nonce
        self._expects = expects
        self._peer: PeerIdentity | None = None
        self._transcript = b""
        self._buffer = bytearray()
        self.session: Session | None = None

    def start(self) -> bytes:
        """What is to be sent before anything is received."""
        return b"" if self._expects is None else self._say(self._hello(), b"ctxp dialer")

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the other side, return what to answer. Done once `session` is there. Raises HandshakeRefused."""
        self._buffer += data
        answer = b""
        while self.session is None and (body := self._take()) is not None:
            if isinstance(body, _Refused):
                raise HandshakeRefused(f"the peer refused: {body.reason}")
            answer += self._on_hello(body) if self._peer is None else self._on_proof(body)
        return answer

    def _on_hello(self, body: _Body) -> bytes:
        if not isinstance(body, _Hello):
            raise self._refusal("a hello was expected")
        self._peer = PeerIdentity(body.cluster_id, body.node, body.store, body.name)
        if self._me.cluster_id and body.cluster_id and self._me.cluster_id != body.cluster_id:
            raise self._refusal("these nodes belong to different clusters")
        if self._expects is None:
            if body.expects and body.expects != self._me.store:
                raise self._refusal("this address has another store than the dialer expects")
            return self._say(self._hello(), b"ctxp listener")
        if self._expects and self._expects != body.store:
            raise self._refusal("this address has another store than the dialer expects")
        proof = self._say(_Proof(), b"ctxp proof")
        self._finish()
        return proof

    def _on_proof(self, body: _Body) -> bytes:
        if not isinstance(body, _Proof):
            raise self._refusal("a proof was expected")
        self._finish()
        return b""

    def _finish(self) -> None:
        assert self._peer is not None
        from_dialer, from_listener = self._mac(b"ctxp to listener", b""), self._mac(b"ctxp to dialer", b"")
        keys = (from_listener, from_dialer) if self._expects is None else (from_dialer, from_listener)
        self.session = Session(self._peer, *keys, bytes(self._buffer))

    def _hello(self) -> _Hello:
        me = self._me
        return _Hello(me.cluster_id, me.node, me.store, me.name, self._nonce, self._expects or "")

    def _refusal(self, reason: str) -> HandshakeRefused:
        """For a peer that proved the secret: it is told the reason."""
        return HandshakeRefused(reason, self._say(_Refused(reason), self._label_out()))

    def _stranger(self, reason: str) -> HandshakeRefused:
        """For one that did not: the reason stays here. A dialer has nothing to add; what it got is a refusal or no node of its cluster."""
        body = _encode(_Refused("refused"))
        return HandshakeRefused(reason, _head(body) + body + _NO_PROOF if self._expects is None else b"")

    def _say(self, body: _Body, label: bytes) -> bytes:
        encoded = _encode(body)
        message = _head(encoded) + encoded
        message += self._mac(label, message)
        self._transcript += message
        return message

    def _take(self) -> _Body | None:
        """The next message of the other side, once it is whole and its MAC was found right."""
        buffer = self._buffer
        start = bytes(buffer[: len(MAGIC) + 1])
        if not MAGIC.startswith(start[: len(MAGIC)]):
            raise self._stranger("the peer does not speak this protocol")
        if len(start) > len(MAGIC) and start[-1] != VERSION:
            raise self._stranger(f"the peer speaks version {start[-1]} of the protocol, this node version {VERSION}")
        if len(buffer) < _HEAD_BYTES:
            return None
        size = int.from_bytes(buffer[_HEAD_BYTES - 2 : _HEAD_BYTES], "little")
        if size > BODY_BYTES_MAX:
            raise self._stranger("the peer's hello is too large")
        end = _HEAD_BYTES + size + _MAC_BYTES
        if len(buffer) < end:
            return None
        message = bytes(buffer[:end])
        del buffer[:end]
        if not hmac.compare_digest(message[-_MAC_BYTES:], self._mac(self._label_in(), message[:-_MAC_BYTES])):
            raise self._stranger(
                "the peer refused without a reason, or knows another secret" if self._expects is not None else "wrong secret"
            )
        self._transcript += message
        try:
            return _bodies.decode(message[_HEAD_BYTES:-_MAC_BYTES])
        except msgspec.MsgspecError as error:
            raise self._refusal("the hello cannot be read") from error

    def _label_in(self) -> bytes:
        if self._expects is not None:
            return b"ctxp listener"
        return b"ctxp dialer" if self._peer is None else b"ctxp proof"

    def _label_out(self) -> bytes:
        return b"ctxp listener" if self._expects is None else b"ctxp proof"

    def _mac(self, label: bytes, message: bytes) -> bytes:
        return blake2b(self._transcript + message, key=self._root, digest_size=_MAC_BYTES, person=label).digest()


def _head(body: bytes) -> bytes:
    return MAGIC + bytes((VERSION,)) + len(body).to_bytes(2, "little")
