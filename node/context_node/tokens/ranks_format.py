"""The packed form in which token ranks travel inside the package.

Knows the layout only: a count `n` (32 bits, little endian), `n` lengths of one byte each, then the tokens' bytes one
after the other; a token's rank is its position. That is a third smaller than the published text (base64 and a number a
line) and three times as quick to read. Does not know tokenizers, patterns or where files are.

Invariant: `published(unpack(pack(ranks)))` is the published file, byte for byte, so its published SHA-256 still speaks
for what the package carries.
"""

import base64
from collections.abc import Mapping


def pack(ranks: Mapping[bytes, int]) -> bytes:
    """The packed form. Raises ValueError if the ranks are not 0, 1, 2, … or a token is longer than 255 bytes."""
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("ranks have holes, so position cannot stand for rank")
    return len(tokens).to_bytes(4, "little") + bytes(len(token) for token in tokens) + b"".join(tokens)


def unpack(packed: bytes) -> dict[bytes, int]:
    """Token → rank. Raises ValueError if the lengths do not add up."""
    count = int.from_bytes(packed[:4], "little")
    ranks: dict[bytes, int] = {}
    start = 4 + count
    for rank, length in enumerate(packed[4 : 4 + count]):
        ranks[packed[start : start + length]] = rank
        start += length
    if start != len(packed) or len(ranks) != count:
        raise ValueError("packed ranks are cut short or repeat a token")
    return ranks


def parse_published(text: bytes) -> dict[bytes, int]:
    """Token → rank from a published `.tiktoken` file: a line each, base64 of the token, a space, its rank."""
    fields = (line.split() for line in text.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in fields}


def published(ranks: Mapping[bytes, int]) -> bytes:
    """The published `.tiktoken` file that holds these ranks."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), ranks[token]) for token in sorted(ranks, key=ranks.__getitem__))
