"""The ranks that the package carries are the published ones, and loading them needs no network."""

import hashlib
import socket
import subprocess
import sys

import pytest

from context_node.tokens import TOKENIZERS, UnknownTokenizer, encodings, ranks_format
from context_node.tokens.encodings import SPECS, encoding, packed_ranks


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_packed_ranks_unpack_to_the_published_file_byte_for_byte(name: str) -> None:
    published = ranks_format.published(ranks_format.unpack(packed_ranks(name)))
    assert hashlib.sha256(published).hexdigest() == SPECS[name].published_sha256


@pytest.mark.parametrize("name", TOKENIZERS)
def test_patterns_and_special_tokens_are_those_of_tiktoken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_args, **_names: {})
    theirs = getattr(openai_public, name)()
    assert SPECS[name].pattern == theirs["pat_str"]
    assert dict(SPECS[name].special_tokens) == theirs["special_tokens"]


@pytest.mark.parametrize(("name", "tokens"), [("o200k_base", [24912, 2375]), ("cl100k_base", [15339, 1917])], ids=["o200k", "cl100k"])
def test_known_text_gives_the_published_token_numbers(name: str, tokens: list[int]) -> None:
    assert encoding(name).encode_ordinary("hello world") == tokens


def test_loading_and_counting_open_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_names: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(encodings, "_loaded", {})
    for name in TOKENIZERS:
        assert encoding(name).name == name


def test_an_encoding_is_built_once() -> None:
    assert encoding("o200k_base") is encoding("o200k_base")


def test_an_unknown_tokenizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownTokenizer, match=r"'gpt9'; use one of o200k_base, cl100k_base"):
        encoding("gpt9")


def test_altered_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["cl100k_base"]
    altered = encodings.Spec(spec.pattern, spec.special_tokens, spec.published_sha256, "0" * 64)
    monkeypatch.setitem(SPECS, "cl100k_base", altered)
    with pytest.raises(ValueError, match="damaged"):
        packed_ranks("cl100k_base")


def test_packed_ranks_that_are_cut_short_are_refused() -> None:
    packed = ranks_format.pack({b"a": 0, b"bc": 1})
    assert ranks_format.unpack(packed) == {b"a": 0, b"bc": 1}
    with pytest.raises(ValueError, match="cut short"):
        ranks_format.unpack(packed[:-1])


def test_ranks_with_holes_are_not_packed() -> None:
    with pytest.raises(ValueError, match="holes"):
        ranks_format.pack({b"a": 0, b"b": 2})


def test_importing_the_package_does_not_load_ranks() -> None:
    check = "from context_node.tokens import encodings; raise SystemExit(len(encodings._loaded))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
