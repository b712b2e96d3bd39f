"""What the log store must know of the bytes that the Raft binding packs."""

from context_node.raft import record_bounds, unpack_log_record
from context_node.runtime.log_rows import RecordCodec


def _hard_state(record: bytes) -> tuple[int, int, int] | None:
    return unpack_log_record(record)[0]


RECORD_CODEC = RecordCodec(bounds=record_bounds, hard_state=_hard_state)
