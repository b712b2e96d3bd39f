"""What the edge allows, as one frozen value.

Knows numbers only. Does not know where they come from: the command line maps the settings onto it. Sizes are bytes, times seconds.
"""

from dataclasses import dataclass

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of what one node takes over HTTP. Every default is PRODUCT.md's."""

    id_bytes_max: int = 256
    """Longest context id, policy name, message id and idempotency key."""
    message_bytes_max: int = MIB
    """Largest message, as compact JSON."""
    batch_messages_max: int = 1000
    """Most messages in one append or one replacement."""
    batch_bytes_max: int = 8 * MIB
    """Largest request body, after decompression."""
    restore_bytes_max: int = 32 * MIB
    """Largest part of a restore: the record of a context, with the summaries in its window, comes in one piece."""
    metadata_bytes_max: int = 16 * KIB
    """Largest metadata object of a context or a message, as compact JSON."""
    parts_max: int = 256
    """Most parts of one message."""
    json_depth_max: int = 64
    """Deepest nesting of a body, in levels of objects and arrays."""
    page_messages_max: int = 1000
    """Largest `limit` of a page of messages or contexts."""
    requests_in_flight_max: int = 1024
    """Requests worked on at once; more are refused at once."""
    request_timeout_s: float = 30.0
    """After this a request answers 503."""
    connections_max: int = 8192
    """Connections open at once; more are closed at once, unread."""
    head_timeout_s: float = 20.0
    """How long a new connection may take to its first request's head. After an answer keep-alive bounds it."""
    streams_max: int = 2048
    """Streams open at once."""
    heartbeat_s: float = 15.0
    """Silence on a stream before a heartbeat."""
    stream_write_timeout_s: float = 30.0
    """How long a stream's reader may leave its socket full before the stream is closed."""
    stream_buffer_bytes: int = 256 * KIB
    """What may wait in a stream's socket buffer before the stream stops to wait for its reader."""
    ticket_ttl_s: float = 60.0
    """How long a stream ticket is good for."""
    compression: bool = True
    """Whether answers are compressed for those who ask."""
    compression_bytes_min: int = KIB
    """Smallest answer worth compressing."""
