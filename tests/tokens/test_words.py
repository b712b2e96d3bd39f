"""Counting by words gives exactly what tiktoken gives for the whole, within bounds of memory and work."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from context_node.tokens import words
from context_node.tokens.encodings import TOKENIZERS, encoding
from context_node.tokens.words import LONG_WORD_COSTS, NEW_WORDS_MAX, WORD_CHARS_MAX, WordCounter


def whole(name: str, text: str) -> int:
    return len(encoding(name).encode_ordinary(text))


each_encoding = pytest.mark.parametrize("name", TOKENIZERS)


# Blanks beside every kind of neighbour: other white space (also such as only Python or only the pattern takes for it), line breaks,
# marks, digits, letters with and without case, combining marks, and the beginnings of contractions.
NEIGHBOURS = st.sampled_from([*"    \n\r\t\x0b\x1c\x85\u00a0\u3000", *"aA1'/.", "'s", "'LL", "é", "\u0301", "漢", "ǅ", "ʰ", "٣", "😀"])
BREAKS = ["", " ", "  ", " a", "a ", "a  b", "a\n b", "a \nb", "a\t b", "foo\n\t bar", "\n a", "a\n\n\n b", "a\n/b", ".\n/\nb", "a  \n- b"]
# What ends with white space is met alone first, and then before a blank: it must not be taken for a word there.
ENDS = [
    "x b",
    "a\n\t",
    "a\n\t b",
    "a\t",
    "a\t b",
    "a\r",
    "a\r b",
    "a\n",
    "a\n \rb",
    "a\n  b",
    "  a",
    "   a\n\n   b",
    "a\n  ",
    "   ",
    "a \nb \n",
]
TEXTS = st.lists(NEIGHBOURS, max_size=40).map("".join) | st.text(max_size=60)


@each_encoding
@settings(max_examples=1500, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6))
@example(texts=BREAKS)
@example(texts=ENDS)
def test_any_text_costs_what_tiktoken_says_of_the_whole_whatever_was_counted_before(name: str, texts: list[str]) -> None:
    counter = WordCounter(lambda text: whole(name, text))
    for text in (*texts, *texts):
        assert counter.count(text) == whole(name, text), repr(text)


@each_encoding
def test_words_that_were_met_are_counted_without_tiktoken(name: str) -> None:
    asked: list[str] = []

    def count_tokens(text: str) -> int:
        asked.append(text)
        return whole(name, text)

    counter = WordCounter(count_tokens)
    text = "Is there an earlier flight, and is there a seat?"
    counter.count(text)
    asked.clear()
    assert counter.count(text) == whole(name, text)
    assert counter.count("Is there a seat?") == whole(name, "Is there a seat?")
    assert asked == []


@each_encoding
def test_lines_indents_and_a_blank_at_the_end_do_not_make_a_text_new(name: str) -> None:
    asked: list[str] = []

    def count_tokens(text: str) -> int:
        asked.append(text)
        return whole(name, text)

    counter = WordCounter(count_tokens)
    text = "Your options:\n\n- the early flight,\n- the late one. \n\n    seats = 2\n    price = 3\n\nWhich of them? "
    for _ in range(3):
        assert counter.count(text) == whole(name, text)
    asked.clear()
    assert counter.count(text) == whole(name, text)
    assert counter.count("- the early flight,\n\nWhich of them? ") == whole(name, "- the early flight,\n\nWhich of them? ")
    assert asked == [" flight,\n\n"], "the one word that was not there before"


@each_encoding
def test_code_and_indented_json_are_counted_by_what_was_met(name: str) -> None:
    asked: list[str] = []

    def count_tokens(text: str) -> int:
        asked.append(text)
        return whole(name, text)

    counter = WordCounter(count_tokens)
    data = json.dumps([{"id": number, "seats": ["a", "b"], "price": {"value": number * 10}} for number in range(9)], indent=4)
    code = "def count(text):\n    if not text:\n        return 0\n\n    return len(text)\n"
    for text in (data, code):
        for _ in range(20):
            assert counter.count(text) == whole(name, text)
        asked.clear()
        assert counter.count(text) == whole(name, text)
        assert asked == []


@each_encoding
@pytest.mark.parametrize("text", ["a \n" * 900 + "x" * 40, " ".join(["x" * 25] * 60), "- \n" * 900, "word " * 400 + "y" * 3000 + " z" * 3])
def test_a_text_that_cannot_be_learned_costs_few_counts_of_its_words(name: str, text: str) -> None:
    asked: list[str] = []

    def count_tokens(text: str) -> int:
        asked.append(text)
        return whole(name, text)

    counter = WordCounter(count_tokens)
    for _ in range(3):
        asked.clear()
        assert counter.count(text) == whole(name, text)
    assert len(asked) <= NEW_WORDS_MAX // LONG_WORD_COSTS + 1


@each_encoding
def test_a_text_of_new_words_is_counted_whole_after_a_few(name: str) -> None:
    asked: list[str] = []

    def count_tokens(text: str) -> int:
        asked.append(text)
        return whole(name, text)

    text = " ".join(f"w{place}" for place in range(1000))
    assert WordCounter(count_tokens).count(text) == whole(name, text)
    assert len(asked) == NEW_WORDS_MAX + 1
    assert asked[-1] == text


@each_encoding
def test_memory_is_bounded_in_words_and_in_their_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS_MAX", 10)
    counter = WordCounter(lambda text: whole(name, text))
    for place in range(200):
        text = f"n{place} is new and {'x' * (WORD_CHARS_MAX + 1)} long, as are n{place + 1} and {place}"
        assert counter.count(text) == whole(name, text)
    tables = (counter._first, counter._later)
    assert all(len(table) <= 10 for table in tables)
    assert all(len(word) <= WORD_CHARS_MAX for table in tables for word in table)
