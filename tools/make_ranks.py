"""Makes the packed token ranks under node/context_node/tokens/ranks/ from published `.tiktoken` files.

Knows the published SHA-256 of each file and refuses anything else. Does not fetch: give it files, gzipped or not, or
wheels that carry them (those of `litellm` and `bpe-openai` do):

    python tools/make_ranks.py bpe_openai-*.whl
    python tools/make_ranks.py o200k_base.tiktoken cl100k_base.tiktoken
"""

import argparse
import gzip
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

from context_node.tokens import encodings, ranks_format

RANKS = Path(encodings.__file__).parent / "ranks"
BYTES_MIN, BYTES_MAX = 500_000, 8_000_000
"""Sizes within which a member of a wheel may be a file of ranks; saves unpacking everything else."""


def candidates(path: Path) -> Iterator[bytes]:
    """The contents in `path` that may be a file of ranks, unpacked."""
    if path.suffix != ".whl":
        yield inflate(path.read_bytes())
        return
    with zipfile.ZipFile(path) as wheel:
        for member in wheel.infolist():
            if BYTES_MIN < member.file_size < BYTES_MAX:
                yield inflate(wheel.read(member))


def inflate(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    by_sha256 = {spec.published_sha256: name for name, spec in encodings.SPECS.items()}
    made = set()
    for source in parser.parse_args().sources:
        for content in candidates(source):
            name = by_sha256.get(hashlib.sha256(content).hexdigest())
            if name is None or name in made:
                continue
            packed = ranks_format.pack(ranks_format.parse_published(content))
            compressed = zstandard.ZstdCompressor(level=22, write_checksum=True).compress(packed)
            (RANKS / f"{name}.zst").write_bytes(compressed)
            made.add(name)
            print(f"{name}: {len(compressed):,} bytes, packed_sha256={hashlib.sha256(packed).hexdigest()}")
    missing = sorted(set(by_sha256.values()) - made)
    if missing:
        print(f"not found, or not as published: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
