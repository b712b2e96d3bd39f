"""The fields of a replica's message that judges look at, read from its bytes. Knows the protobuf numbers of eraftpb (raft-proto 0.7)."""

_NAMES = {
    1: "kind",
    2: "to",
    3: "from",
    4: "term",
    5: "log_term",
    6: "index",
    8: "commit",
    10: "reject",
    11: "reject_hint",
    13: "request_snapshot",
}


def fields_of(message: bytes) -> dict[str, int]:
    """The numbers in a message, by name; zeros are left out, as protobuf does."""
    found: dict[str, int] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
            if (name := _NAMES.get(tag >> 3)) is not None:
                found[name] = value
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            at += size
        else:
            raise ValueError(f"field {tag >> 3} of wire type {tag & 7} is in no message of a replica")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
