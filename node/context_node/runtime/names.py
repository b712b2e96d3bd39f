"""Generated ids: sortable by time (as ULIDs are), or derived from a key so that a retry finds the same context."""

from hashlib import blake2b

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: keeps the order of the numbers."""


def _base32(number: int, length: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(length)))


def new_id(now_ms: int, random_bytes: bytes) -> str:
    """An id that sorts by its time: 48 bits of milliseconds, then the 80 random bits given."""
    return f"ctx_{_base32(now_ms, 10)}{_base32(int.from_bytes(random_bytes, 'big'), 16)}"


def derived_id(owner: str, key: str) -> str:
    """The id that belongs to an API key's id and an idempotency key; the same for every retry."""
    said = f"{len(owner)}:{owner}{key}".encode()
    return f"ctx_{_base32(int.from_bytes(blake2b(said, digest_size=16).digest(), 'big') >> 3, 25)}k"
