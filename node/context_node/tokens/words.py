"""Counting text by its words, most of which were met before.

Why: splitting a text by its encoding's pattern (Unicode classes, a look-ahead) is most of tiktoken's time, and the rest is a walk through
tables of megabytes, cold between two requests; together a quarter of all instructions of a durable append (74,000 for 46 tokens). But
both patterns begin a new piece at every blank that stands beside no other white space, and behind every line break before what is neither
white space nor a slash. So a text's count is the sum of its words' counts, each with the blank before it or the break behind it; and
people use few words often.

Knows where words may be told apart. Does not know patterns or ranks: a new word is counted by tiktoken itself. Invariants: the sum is
exactly tiktoken's count of the whole; at most `WORDS_MAX` counts are kept in each table, of words of at most `WORD_CHARS_MAX` characters;
a text of new words costs at most `NEW_WORDS_MAX` short counts more than without this.
"""

from collections.abc import Callable, Iterator
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
        """Tokens of a word that begins a text or a line."""
        self._later: dict[str, int] = {}
        """Tokens of a blank with the word after it."""

    def count(self, text: str) -> int:
        """Tokens of `text`. Safe from any thread: two that meet a new word both count it."""
        total, room = 0, NEW_WORDS_MAX
        for line in _lines(text) if "\n" in text else (text,):
            first, *later = line.split(" ")
            if later and not later[-1]:
                # The blank at the end belongs to the word before it.
                later.pop()
                if later:
                    later[-1] += " "
                else:
                    first += " "
            try:
                total += self._first[first] + sum(map(self._later.__getitem__, later))
            except KeyError:
                learned = self._learned(first, later, room) if len(line) <= WORD_CHARS_MAX * (1 + len(later)) else None
                if learned is None:
                    return self._count_tokens(text)
                total, room = total + learned[0], learned[1]
        return total

    def _learned(self, first: str, later: list[str], room: int) -> tuple[int, int] | None:
        """The sum where some words are new, and how many more may be. None if too many are."""
        total = 0
        table = self._first
        for word in _words(first, later):
            count = table.get(word)
            if count is None:
                room -= 1
                if room < 0:
                    return None
                count = self._learn(table, word, "" if table is self._first else " ")
            total += count
            table = self._later
        return total, room

    def _learn(self, table: dict[str, int], word: str, before: str) -> int:
        count = self._count_tokens(before + word)
        if len(word) <= WORD_CHARS_MAX:
            if len(table) >= WORDS_MAX:
                table.clear()
            table[word] = count
        return count


def _lines(text: str) -> Iterator[str]:
    """The text in parts that end where a line break stands before what is no white space and no slash, which may belong to the break's
    piece."""
    line = ""
    for part in text.split("\n"):
        if line and part and part[0] != "/" and not part[0].isspace():
            yield line
            line = ""
        # Each but the last has its break behind it.
        line += part + "\n"
    yield line[:-1]


def _words(first: str, later: list[str]) -> Iterator[str]:
    """The words as they can be told apart: one with white space at an end, or none at all, is joined to its neighbour."""
    word = first
    for other in later:
        if word and other and not word[-1].isspace() and not other[0].isspace():
            yield word
            word = other
        else:
            word += " " + other
    yield word
