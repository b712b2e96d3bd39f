"""Media cost what the providers' published formulas say, never the length of their base64."""

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context_node.tokens import count_json, count_parts, count_text, image_tokens
from context_node.tokens.images import image_size
from context_node.tokens.media import (
    FILE_DEFAULT_TOKENS,
    MEDIA_TOKENS_MAX,
    MEDIA_TYPES,
    OPENAI_IMAGE_DEFAULT_TOKENS,
    PDF_PAGE_TOKENS,
)

O200K = "o200k_base"


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(width: int, height: int, padding: int = 0) -> str:
    return b64(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + bytes(9 + padding))


def jpeg(width: int, height: int, preview: int = 0) -> str:
    app1 = b"\xff\xe1" + struct.pack(">H", preview + 2) + bytes(preview)
    table = b"\xff\xdb\x00\x05\x00\x01\x02"
    frame = b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width) + bytes(12)
    return b64(b"\xff\xd8" + app1 + table + b"\xff" + frame)


def gif(width: int, height: int) -> str:
    return b64(b"GIF89a" + struct.pack("<HH", width, height) + bytes(20))


def webp(kind: bytes, width: int, height: int) -> str:
    body = {
        b"VP8 ": bytes(4) + bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height),
        b"VP8L": bytes(4) + b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14),
        b"VP8X": bytes(8) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3],
    }[kind]
    return b64(b"RIFF" + bytes(4) + b"WEBP" + kind + body + bytes(20))


IMAGES = {
    "png": png(1024, 600),
    "jpeg": jpeg(1024, 600, preview=60_000),
    "gif": gif(1024, 600),
    "webp lossy": webp(b"VP8 ", 1024, 600),
    "webp lossless": webp(b"VP8L", 1024, 600),
    "webp extended": webp(b"VP8X", 1024, 600),
}


def cost(part: dict[str, object]) -> int:
    return count_parts(O200K, [part])[0]


@pytest.mark.parametrize("data", IMAGES.values(), ids=IMAGES)
def test_the_size_of_an_inline_image_is_read_from_its_header(data: str) -> None:
    assert image_size(data) == (1024, 600)
    assert image_size(data.replace("+", "-").replace("/", "_").rstrip("=")) == (1024, 600)


@given(st.binary(max_size=400).map(b64) | st.text(max_size=400))
def test_anything_may_call_itself_an_image(data: str) -> None:
    size = image_size(data)
    assert size is None or min(size) > 0


@given(st.sampled_from(sorted(IMAGES)), st.integers(0, 120), st.binary(max_size=3))
def test_a_damaged_image_is_unknown_or_has_some_size(name: str, place: int, junk: bytes) -> None:
    content = base64.b64decode(IMAGES[name])
    image_size(b64(content[:place] + junk + content[place + len(junk) :]))
    image_size(b64(content[:place]))


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((1024, 1024), 765),  # OpenAI's own examples
        ((2048, 4096), 1105),
        ((512, 512), 255),
        ((513, 512), 425),
        ((1, 1), 255),
        ((2048, 768), 85 + 170 * 8),
        ((100_000, 1), 85 + 170 * 4),
    ],
)
def test_openai_counts_tiles(size: tuple[int, int], tokens: int) -> None:
    assert image_tokens("openai", size) == tokens
    assert image_tokens("openai", size, "low") == 85


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((200, 200), 54), ((1000, 1000), 1334), ((1092, 1092), 1590), ((8000, 8000), 1600), (None, 1600)],
)
def test_anthropic_counts_pixels(size: tuple[int, int] | None, tokens: int) -> None:
    assert image_tokens("anthropic", size) == tokens


@pytest.mark.parametrize(("size", "tokens"), [((384, 384), 258), ((385, 10), 258), ((1024, 1024), 1032)])
def test_google_counts_tiles(size: tuple[int, int], tokens: int) -> None:
    assert image_tokens("google", size) == tokens


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + png(1024, 1024)}},
        {"type": "image_url", "image_url": "data:image/png;base64," + png(1024, 1024)},
        {"type": "image", "image": png(1024, 1024), "mediaType": "image/png"},
        {"type": "image", "image": "https://example.org/cat.png", "width": 1024, "height": 1024},
        {"type": "image", "image": "https://example.org/cat.png"},
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64," + png(1024, 1024)},
        {"type": "file", "mediaType": "image/png", "data": png(1024, 1024)},
        {"type": "input_image", "image_url": "data:image/png;base64," + png(1024, 1024)},
    ],
    ids=str,
)
def test_an_image_costs_the_same_in_every_shape(part: dict[str, object]) -> None:
    assert cost(part) == 765


def test_the_length_of_base64_costs_nothing() -> None:
    small, large = png(800, 600), png(800, 600, padding=700_000)
    assert cost({"type": "image", "image": small}) == cost({"type": "image", "image": large})


def test_detail_low_is_heeded() -> None:
    assert cost({"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}) == 85


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(1000, 1000)}},
        {"type": "image", "image": png(1000, 1000), "providerOptions": {"anthropic": {}}},
    ],
    ids=["source", "providerOptions"],
)
def test_a_part_that_names_anthropic_is_counted_as_anthropic_counts(part: dict[str, object]) -> None:
    assert cost(part) == 1334


def test_pages_of_a_pdf_are_counted() -> None:
    pdf = b"%PDF-1.4\n<< /Type /Pages /Count 2 >>\n<< /Type /Page >> << /Type/Page/Parent 1 0 R>>"
    for part in (
        {"type": "file", "mediaType": "application/pdf", "data": b64(pdf)},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + b64(pdf)}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": b64(pdf)}},
        {"type": "file", "mediaType": "application/pdf", "url": "https://example.org/a.pdf", "pages": 2},
    ):
        assert cost(part) == 2 * PDF_PAGE_TOKENS
    assert cost({"type": "file", "mediaType": "application/pdf", "url": "https://example.org/a"}) == PDF_PAGE_TOKENS


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "mediaType": "text/plain", "data": b64("Guten Tag, Ärger".encode())},
        {"type": "file", "mediaType": "text/plain", "url": "data:text/plain,Guten%20Tag,%20%C3%84rger"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Guten Tag, Ärger"}},
    ],
    ids=["base64", "data URL", "source"],
)
def test_inline_text_files_cost_their_text(part: dict[str, object]) -> None:
    assert cost(part) == count_text(O200K, "Guten Tag, Ärger")


def test_audio_costs_by_its_length() -> None:
    rate = 32_000
    head = b"RIFF" + bytes(4) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, rate, 2, 16)
    wav = b64(head + bytes(3 * rate - len(head)))
    assert cost({"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}) == 30
    assert cost({"type": "audio", "url": "https://example.org/a.mp3", "duration_s": 2.05}) == 21
    assert cost({"type": "audio", "url": "https://example.org/a.mp3"}) == 600
    assert cost({"type": "audio", "data": wav, "providerOptions": {"google": {}}}) == 96


def test_unknown_files_have_the_default_cost() -> None:
    assert cost({"type": "file", "file": {"file_id": "file-123"}}) == FILE_DEFAULT_TOKENS
    assert cost({"type": "image"}) == OPENAI_IMAGE_DEFAULT_TOKENS


def test_what_a_part_claims_of_itself_is_bounded() -> None:
    assert cost({"type": "file", "mediaType": "application/pdf", "pages": 1_000_000}) == MEDIA_TOKENS_MAX
    odd: list[object] = [float("nan"), float("inf"), -5, True, "7", 10**30, None]
    for value in odd:
        assert cost({"type": "image", "width": value, "height": value}) == OPENAI_IMAGE_DEFAULT_TOKENS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["image", "image_url", "url", "data", "file", "source", "mediaType", "width", "height", "pages", "duration"]


@given(st.sampled_from(sorted(MEDIA_TYPES)), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_s1_no_media_part_makes_counting_fail(part_type: str, fields: dict[str, object]) -> None:
    """S1: media are never checked at the edge, so anything may stand in them."""
    assert 0 <= cost({**fields, "type": part_type}) <= MEDIA_TOKENS_MAX


@pytest.mark.parametrize(
    "wrap",
    [
        lambda items: {"type": "tool_result", "tool_use_id": "c", "content": items},
        lambda items: {"type": "tool_result", "tool_call_id": "c", "output": items},
        lambda items: {"type": "tool-result", "toolCallId": "c", "output": {"type": "content", "value": items}},
    ],
    ids=["content", "output", "output.value"],
)
def test_a_screenshot_in_a_tool_result_costs_an_image(wrap) -> None:  # type: ignore[no-untyped-def]
    note = {"type": "text", "text": "the page"}
    shot = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(1000, 1000, 50_000)}}
    assert cost(wrap([note, shot])) == count_json(O200K, wrap([note])) + 1334
