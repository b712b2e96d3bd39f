"""Messages between replicas, built by hand: for what no correct peer sends.

Knows the protobuf numbers of eraftpb (raft-proto 0.7) and nothing of their meaning.
"""

from context_node.raft import MessageKind

_FIELDS = {
    "kind": 1,
    "to": 2,
    "sender": 3,
    "term": 4,
    "log_term": 5,
    "index": 6,
    "commit": 8,
    "reject": 10,
    "reject_hint": 11,
    "request_snapshot": 13,
    "commit_term": 15,
}

LOCAL_KINDS = {
    "hup": 0,
    "beat": 1,
    "propose": 2,
    "unreachable": 10,
    "snap_status": 11,
    "check_quorum": 12,
    "transfer": 13,
}


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""


def _span(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def entry(index: int, term: int, data: bytes = b"", kind: int = 0) -> bytes:
    """One log entry."""
    return _number(1, kind) + _number(2, term) + _number(3, index) + (_span(4, data) if data else b"")


def snapshot(index: int, term: int, members: bytes, data: bytes = b"") -> bytes:
    """A snapshot's description."""
    metadata = _span(1, members) + _number(2, index) + _number(3, term)
    return _span(1, data) + _span(2, metadata)


def message(
    kind: MessageKind | int,
    *,
    entries: tuple[bytes, ...] = (),
    snapshot: bytes | None = None,
    context: bytes | None = None,
    **numbers: int,
) -> bytes:
    """A message; `numbers` by the names in `_FIELDS` (`sender` is protobuf's `from`)."""
    out = _number(1, int(kind))
    out += b"".join(_number(_FIELDS[name], value) for name, value in numbers.items())
    out += b"".join(_span(7, each) for each in entries)
    if snapshot is not None:
        out += _span(9, snapshot)
    if context is not None:
        out += _span(12, context)
    return out
