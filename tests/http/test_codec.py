"""The codec against the standard library's parser, which is slower and simpler."""

import json
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from context_node.contexts.refusals import InvalidRequest
from context_node.http import codec, compression

ANYTHING = msgspec.json.Decoder(Any)
DEPTH_MAX = 5

values = st.recursive(
    st.none() | st.booleans() | st.integers(codec.INTEGER_MIN, codec.INTEGER_MAX) | st.text() | st.text("[]{}\"\\,:"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("[]{}\"\\ab"), inner, max_size=4),
    max_leaves=60,
)  # fmt: skip


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(one) for one in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(one) for one in value), default=0)
    return 0


@settings(max_examples=300, deadline=None)
@given(values, st.booleans())
def test_a_value_passes_exactly_if_it_is_not_too_deep(value: Any, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    try:
        decoded = codec.decode(data, ANYTHING, DEPTH_MAX)
    except InvalidRequest as refusal:
        assert depth_of(value) > DEPTH_MAX, refusal.message
    else:
        assert depth_of(value) <= DEPTH_MAX
        assert decoded == value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}",:\\u0189dDef-+.eEtrn ', max_size=60).map(str.encode))
@example(b'"\\')
@example(b'"' + b"\\" * 9)
def test_any_bytes_are_decoded_as_the_standard_library_would_or_refused(data: bytes) -> None:
    try:
        decoded = codec.decode(data, ANYTHING, 3)
    except InvalidRequest:
        return
    assert json.loads(data) == decoded


@given(st.integers())
def test_integers_are_taken_exactly_within_64_bits(number: int) -> None:
    data = b'{"a":[%d]}' % number
    try:
        assert codec.decode(data, ANYTHING, 3) == {"a": [number]}
    except InvalidRequest:
        assert not codec.INTEGER_MIN <= number <= codec.INTEGER_MAX
    else:
        assert codec.INTEGER_MIN <= number <= codec.INTEGER_MAX


@given(st.text("gzipstd,;q=0.19* ", max_size=40))
def test_any_accept_encoding_chooses_something_that_we_have(header: str) -> None:
    assert compression.choose(header) in ("", "gzip", "zstd")
