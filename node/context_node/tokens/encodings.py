"""The tokenizers that the package carries, made from its own ranks, so that nothing is ever fetched.

Knows: names, patterns, special tokens and checksums of the encodings, as `tiktoken_ext.openai_public` states them.
Does not know parts or messages.

Invariants: an encoding is built at most once a process, at its first use, under a lock; the ranks' SHA-256 is checked
whenever they are loaded. Special tokens exist in the encoding but text is never read as one: a user who writes
`<|endoftext|>` has written ordinary characters.
"""

import hashlib
import threading
from dataclasses import dataclass
from importlib import resources

import tiktoken
import zstandard

from context_node.tokens import ranks_format
from context_node.tokens.words import WordCounter

PACKED_BYTES_MAX = 16 * 2**20
"""The most that packed ranks may unpack to; o200k_base needs 1.6 MiB."""


class UnknownTokenizer(ValueError):
    """A tokenizer that the package does not carry. The message lists those that it does."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Unknown tokenizer {name!r}; use one of {', '.join(TOKENIZERS)}.")
        self.name = name
        self.known = TOKENIZERS


@dataclass(frozen=True, slots=True)
class Spec:
    """How an encoding is built. `published_sha256` is of OpenAI's `.tiktoken` file, `packed_sha256` of our form."""

    pattern: str
    special_tokens: tuple[tuple[str, int], ...]
    published_sha256: str
    packed_sha256: str


_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

# Source: tiktoken_ext/openai_public.py of tiktoken, MIT licence. Order matters: the first name is the default.
SPECS: dict[str, Spec] = {
    "o200k_base": Spec(
        pattern="|".join(
            [
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTION,
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTION,
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            ]
        ),
        special_tokens=(("<|endoftext|>", 199999), ("<|endofprompt|>", 200018)),
        published_sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        packed_sha256="ba55b38e477b631966c2496061ecd7d10108501c7c47358222d9dc27c22f9422",
    ),
    "cl100k_base": Spec(
        pattern=(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
            r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        ),
        special_tokens=(
            ("<|endoftext|>", 100257),
            ("<|fim_prefix|>", 100258),
            ("<|fim_middle|>", 100259),
            ("<|fim_suffix|>", 100260),
            ("<|endofprompt|>", 100276),
        ),
        published_sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        packed_sha256="79045c4dbf49c4e3b90893afbcbfd80cf94cf2b99256bd84b19ffcace49d9bd2",
    ),
}

TOKENIZERS: tuple[str, ...] = tuple(SPECS)
"""Names of the tokenizers that the package carries; the first is the default."""

_loaded: dict[str, tiktoken.Encoding] = {}
_counters: dict[str, WordCounter] = {}
_loading = threading.Lock()


def encoding(name: str) -> tiktoken.Encoding:
    """The encoding `name`, built at its first use (about 0.3 s). Safe from any thread. Raises UnknownTokenizer."""
    found = _loaded.get(name)
    if found is not None:
        return found
    with _loading:
        if name not in _loaded:
            _loaded[name] = _build(name)
        return _loaded[name]


def word_counter(name: str) -> WordCounter:
    """The counter of short texts for `name`; loads the encoding at its first use. Safe from any thread. Raises UnknownTokenizer."""
    found = _counters.get(name)
    if found is None:
        encode = encoding(name).encode_ordinary
        # Two threads may both make one; the first stays, so that there is one table.
        found = _counters.setdefault(name, WordCounter(lambda text: len(encode(text))))
    return found


def packed_ranks(name: str) -> bytes:
    """The packed ranks that the package carries. Raises UnknownTokenizer, or ValueError if they were altered."""
    if name not in SPECS:
        raise UnknownTokenizer(name)
    file = resources.files("context_node.tokens") / "ranks" / f"{name}.zst"
    packed = zstandard.ZstdDecompressor().decompress(file.read_bytes(), max_output_size=PACKED_BYTES_MAX)
    if hashlib.sha256(packed).hexdigest() != SPECS[name].packed_sha256:
        raise ValueError(f"the ranks of {name} in this installation are damaged; install the package again")
    return packed


def _build(name: str) -> tiktoken.Encoding:
    ranks = ranks_format.unpack(packed_ranks(name))
    spec = SPECS[name]
    built = tiktoken.Encoding(name=name, pat_str=spec.pattern, mergeable_ranks=ranks, special_tokens=dict(spec.special_tokens))
    # The encoding has copied the ranks into Rust and keeps our dictionary only to be pickled, which nobody does here:
    # emptying it gives back 20 to 40 MiB.
    ranks.clear()
    return built
