"""Counting text by its words, most of which were met before.

Why: splitting a text by its encoding's pattern (Unicode classes, a look-ahead) is most of tiktoken's time, and the rest is a walk through
tables of megabytes, cold between two requests; together a quarter of all instructions of a durable append (74,000 for 46 tokens). But
both patterns begin a new piece at every blank that stands beside no other white space, and behind the last line break of white space that
something follows, unless a slash does at once. So a text's count is the sum of its words' counts, each with the blank before it or the
break behind it; and people use few words often.

Knows where words may be told apart. Does not know patterns or ranks: a new word is counted by tiktoken itself. Invariants: the sum is
exactly tiktoken's count of the whole; some `WORDS_MAX` counts are kept in each table, of words of at most `WORD_CHARS_MAX` characters;
a text that turns out to be none of known words costs little more than a second count of it.
"""

from collections.abc import Callable, Iterator
from typing import Final

WORDS_MAX: Final = 32 * 1024
"""Some 4 MiB. English needs a few thousand; when random text has filled a table, it is emptied and fills again with what is used."""

WORD_CHARS_MAX: Final = 24

NEW_WORDS_MAX: Final = 16
"""A text with more new words than that is counted whole; the next one finds those that were learned."""

LONG_WORD_COSTS: Final = 8
"""A word of more than `WORD_CHARS_MAX` characters, which is not learned, counts as so many new ones."""

LINE_CHARS_MIN: Final = 8
"""A text of shorter lines than that is counted whole: to take it apart would cost more than to count it."""


class WordCounter:
    """Counts for one encoding. `count_tokens` is tiktoken's own count of a text."""

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self._count_tokens = count_tokens
        self._first: dict[str, int] = {}
        """Tokens of a word that begins a text or a line, or of blanks that do."""
        self._later: dict[str, int] = {}
        """Tokens of a blank with the word after it."""

    def count(self, text: str) -> int:
        """Tokens of `text`. Safe from any thread: two that meet a new word both count it."""
        breaks = text.count("\n")
        if breaks * LINE_CHARS_MIN > len(text):
            return self._count_tokens(text)
        total, room = 0, NEW_WORDS_MAX
        for line in _lines(text) if breaks else (text,):
            first, later = _split(line)
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
                room -= 1 if len(word) <= WORD_CHARS_MAX else LONG_WORD_COSTS
                if room < 0:
                    return None
                count = self._learn(table, word, "" if table is self._first else " ")
            total += count
            table = self._later
        return total, room

    def _learn(self, table: dict[str, int], word: str, before: str) -> int:
        count = self._count_tokens(before + word)
        # What ends with white space may stand before a blank only at the end of a line: one with a blank in it is found nowhere else, and
        # behind a break a new line begins.
        if len(word) <= WORD_CHARS_MAX and (not word[-1:].isspace() or word[-1] in " \n"):
            if len(table) >= WORDS_MAX:
                table.clear()
            table[word] = count
        return count


def _lines(text: str) -> Iterator[str]:
    """The text in parts that end behind the last line break of white space that something follows. Not before a slash, which may belong to
    the break's piece (o200k)."""
    line = ""
    for part in text.split("\n"):
        if line and part and part[0] != "/" and _begins_line(part):
            yield line
            line = ""
        # Each but the last has its break behind it.
        line += part + "\n"
    yield line[:-1]


def _begins_line(part: str) -> bool:
    if not part[0].isspace():
        return True
    rest = part.lstrip()
    return bool(rest) and "\r" not in part[: len(part) - len(rest)]


def _split(line: str) -> tuple[str, list[str]]:
    """At its blanks. Of blanks at the beginning all but the last are the first word; one at the end belongs to the word before it."""
    rest = line.lstrip(" ")
    blanks = len(line) - len(rest)
    if blanks and rest and not rest[0].isspace():
        first, later = line[: blanks - 1], rest.split(" ")
    else:
        first, *later = line.split(" ")
    if later and not later[-1]:
        later.pop()
        if later:
            later[-1] += " "
        else:
            first += " "
    return first, later


def _words(first: str, later: list[str]) -> Iterator[str]:
    """The words as they can be told apart: one with white space at an end, or none at all, is joined to its neighbour."""
    word, is_first = first, True
    for other in later:
        is_indent = is_first and not word.strip(" ")
        if other and not other[0].isspace() and (is_indent or (word and not word[-1].isspace())):
            yield word
            word, is_first = other, False
        else:
            word += " " + other
    yield word
