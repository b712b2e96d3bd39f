"""Counting text by its words, most of which were met before.

Why: splitting a text by its encoding's pattern (Unicode classes, a look-ahead) is most of tiktoken's time, and the rest is a walk through
tables of megabytes, cold between two requests; together a quarter of all instructions of a durable append (74,000 for 46 tokens). But
both patterns begin a new piece at every blank that stands beside no other white space, so a text's count is the sum of its words'
counts, each with the blank before it; and people use few words often.

Knows where words may be told apart. Does not know patterns or ranks: a new word is counted by tiktoken itself. Invariants: the sum is
exactly tiktoken's count of the whole; at most `WORDS_MAX` counts are kept in each table, of words of at most `WORD_CHARS_MAX` characters;
a text of new words costs at most `NEW_WORDS_MAX` short counts more than without this.
"""

from collections.abc import Callable
from typing import Final

WORDS_MAX: Final = 32 * 1024
"""Some 4 MiB. English needs a few thousand; when random text has filled a table, it is emptied and fills again with what is used."""

WORD_CHARS_MAX: Final = 24

NEW_WORDS_MAX: Final = 16
"""A text with more new words than that is counted whole; the next one finds those that were learned."""


class WordCounter:
    """Counts for one encoding. `count_tokens` is tiktoken's own count of a text."""

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self._count_tokens = count_tokens
        self._first: dict[str, int] = {}
        """Tokens of a word that begins a text."""
        self._later: dict[str, int] = {}
        """Tokens of a blank with the word after it."""

    def count(self, text: str) -> int:
        """Tokens of `text`. Safe from any thread: two that meet a new word both count it."""
        first, *later = text.split(" ")
        try:
            return self._first[first] + sum(map(self._later.__getitem__, later))
        except KeyError:
            count = self._learned(first, later) if len(text) <= WORD_CHARS_MAX * (1 + len(later)) else None
            return self._count_tokens(text) if count is None else count

    def _learned(self, first: str, later: list[str]) -> int | None:
        """The sum where some words are new. None if too many are, or if one is no word: empty, or with white space at an end."""
        total = self._first.get(first)
        if total is None:
            if not _is_word(first):
                return None
            total = self._learn(self._first, first, "")
        new = 0
        for word in later:
            count = self._later.get(word)
            if count is None:
                new += 1
                if new > NEW_WORDS_MAX or not _is_word(word):
                    return None
                count = self._learn(self._later, word, " ")
            total += count
        return total

    def _learn(self, table: dict[str, int], word: str, before: str) -> int:
        count = self._count_tokens(before + word)
        if len(word) <= WORD_CHARS_MAX:
            if len(table) >= WORDS_MAX:
                table.clear()
            table[word] = count
        return count


def _is_word(word: str) -> bool:
    return bool(word) and not word[0].isspace() and not word[-1].isspace()
