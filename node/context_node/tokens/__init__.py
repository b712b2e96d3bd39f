"""Counting tokens, offline: text by tiktoken with ranks that the package carries, media by published formulas.

Knows the tokenizers' names, what each kind of part costs, and when counting is slow enough to need a worker thread.
Does not know messages, windows or budgets, keeps nothing but the loaded encodings, and never touches the network.

Start with `count_parts`; call `needs_thread` first and run it in a thread if that says so. `preload` at start-up keeps
the first request from paying for loading the ranks (0.3 s and some 50 MiB for o200k_base).
"""

from context_node.tokens.counting import (
    SLICE_CHARS_MAX,
    THREAD_CHARS_MIN,
    count_json,
    count_outputs,
    count_part,
    count_parts,
    count_text,
    distribute,
    needs_thread,
)
from context_node.tokens.encodings import TOKENIZERS, UnknownTokenizer
from context_node.tokens.encodings import encoding as _encoding
from context_node.tokens.media import MEDIA_TYPES, image_tokens

DEFAULT_TOKENIZER = TOKENIZERS[0]

__all__ = [
    "DEFAULT_TOKENIZER",
    "MEDIA_TYPES",
    "SLICE_CHARS_MAX",
    "THREAD_CHARS_MIN",
    "TOKENIZERS",
    "UnknownTokenizer",
    "count_json",
    "count_outputs",
    "count_part",
    "count_parts",
    "count_text",
    "distribute",
    "image_tokens",
    "needs_thread",
    "preload",
]


def preload(tokenizer: str = DEFAULT_TOKENIZER) -> None:
    """Load a tokenizer now, on the calling thread, instead of at its first use. Raises UnknownTokenizer."""
    _encoding(tokenizer)
