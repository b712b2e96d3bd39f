"""The bytes of one batch row of the log store: records of several shards under one checksum.

Knows: the layout. Does not know: what a record holds, SQLite, which records are still needed.

Layout, little-endian: crc32 (u32) over all that follows and over the batch's number, so that a row that turns up under
another number is found out too; format (u8); count (u16); then per record shard (u32), replica id (u64), length (u32)
and the record's bytes.

Invariant: `unpack_batch(n, pack_batch(n, records)) == records`, and any other bytes raise `BatchDamaged`.
"""

import struct
import zlib
from collections.abc import Sequence

FORMAT = 1
RECORDS_MAX = 0x7FFF
"""Most records of one batch: the log's index keeps a record's place in 15 bits."""

_HEAD = struct.Struct("<IBH")
_RECORD = struct.Struct("<IQI")
_NUMBER = struct.Struct("<Q")

Record = tuple[int, int, bytes]
"""(shard in [0, 2**32), replica id in [0, 2**64), the packed record of the Raft binding)."""


class BatchDamaged(ValueError):
    """The bytes of a batch row are not what was written."""


def pack_batch(number: int, records: Sequence[Record]) -> bytes:
    """The row of batch `number`. Raises `ValueError` for none or more than `RECORDS_MAX` records."""
    if not 0 < len(records) <= RECORDS_MAX:
        raise ValueError(f"a batch holds 1 to {RECORDS_MAX} records, not {len(records)}")
    pieces = [b""]
    for shard, replica_id, record in records:
        pieces.append(_RECORD.pack(shard, replica_id, len(record)))
        pieces.append(record)
    pieces[0] = _HEAD.pack(0, FORMAT, len(records))[4:]
    body = b"".join(pieces)
    return _checksum(number, body).to_bytes(4, "little") + body


def unpack_batch(number: int, row: bytes) -> list[Record]:
    """The records of batch `number`, in the order in which they were packed. Raises `BatchDamaged`."""
    if len(row) < _HEAD.size:
        raise BatchDamaged(f"batch {number} is {len(row)} bytes short of a header")
    checksum, version, count = _HEAD.unpack_from(row)
    if checksum != _checksum(number, memoryview(row)[4:]):
        raise BatchDamaged(f"batch {number} does not match its checksum")
    if version != FORMAT:
        raise BatchDamaged(f"batch {number} has format {version}; this version reads {FORMAT}")
    records: list[Record] = []
    offset = _HEAD.size
    for _ in range(count):
        if offset + _RECORD.size > len(row):
            raise BatchDamaged(f"batch {number} ends inside a record")
        shard, replica_id, length = _RECORD.unpack_from(row, offset)
        offset += _RECORD.size
        records.append((shard, replica_id, row[offset : offset + length]))
        offset += length
    if offset != len(row):
        raise BatchDamaged(f"batch {number} is {len(row)} bytes, its records need {offset}")
    return records


def _checksum(number: int, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(_NUMBER.pack(number)))
