"""The size in pixels of an inline image, read from its first bytes.

Knows the headers of PNG, JPEG, GIF and WebP. Never decodes pixels and never reads more than `HEADER_BYTES_MAX` bytes,
so what a hostile image can cost is bounded. Anything it does not understand is "unknown", never an error.
"""

import binascii
from typing import Final

FIRST_BYTES: Final = 48
"""Enough for PNG, GIF and WebP, and to see that an image is a JPEG."""

HEADER_BYTES_MAX: Final = 256 * 1024
"""How far a JPEG is searched for its frame header: behind previews and colour profiles of up to 64 KiB each."""

Size = tuple[int, int]

_URL_SAFE = str.maketrans("-_", "+/")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def image_size(data: str) -> Size | None:
    """Width and height of the image whose base64 (standard or URL-safe) is `data`, or None if they can't be read."""
    head = decode_start(data, FIRST_BYTES)
    if head[:2] == b"\xff\xd8":
        size = _jpeg_size(decode_start(data, HEADER_BYTES_MAX))
    else:
        size = _png_size(head) or _gif_size(head) or _webp_size(head)
    return size if size and size[0] > 0 and size[1] > 0 else None


def decode_start(data: str, bytes_max: int) -> bytes:
    """At most the first `bytes_max` bytes (a multiple of 3) of base64 `data`; empty if it is not base64."""
    start = data[: bytes_max // 3 * 4]
    if "-" in start or "_" in start:
        start = start.translate(_URL_SAFE)
    try:
        return binascii.a2b_base64(start + "=" * (-len(start) % 4))
    except ValueError:
        return b""


def _png_size(head: bytes) -> Size | None:
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or len(head) < 24:
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _gif_size(head: bytes) -> Size | None:
    if head[:6] not in (b"GIF87a", b"GIF89a") or len(head) < 10:
        return None
    return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")


def _webp_size(head: bytes) -> Size | None:
    """The three kinds of WebP: lossy (RFC 9649, 2.5), lossless (2.6) and extended (2.7)."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None


def _jpeg_size(head: bytes) -> Size | None:
    """Walks the segments up to the frame header (ITU-T T.81, B.1.1 and B.2.2), each of which says how long it is."""
    place = 2
    while place + 9 <= len(head):
        if head[place] != 0xFF:
            return None
        marker = head[place + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
        elif marker in _JPEG_FRAMES:
            return int.from_bytes(head[place + 7 : place + 9], "big"), int.from_bytes(head[place + 5 : place + 7], "big")
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that stand alone
            place += 2
        else:
            place += 2 + max(2, int.from_bytes(head[place + 2 : place + 4], "big"))
    return None
