"""What images, files, audio and video cost: the providers' published formulas, never the length of their base64.

Knows the shapes in which the common SDKs send media and three providers' formulas; a part that names no provider is
counted as OpenAI counts it. Does not fetch anything: what a URL points at has the documented default cost of its kind.
Invariant: pure, and bounded in time by the part's own length.

Sources
- OpenAI images: platform.openai.com/docs/guides/images-vision, "Calculating costs" (tiles).
- OpenAI audio: developers.openai.com/api/docs/guides/realtime-costs (a token for each 100 ms of the user's audio).
- Anthropic images: docs.anthropic.com/en/docs/build-with-claude/vision, "Calculate image costs".
- Anthropic PDF: docs.anthropic.com/en/docs/build-with-claude/pdf-support (1,500 to 3,000 tokens a page).
- Google: ai.google.dev/gemini-api/docs/tokens, "Multimodal tokens"; a page of a PDF counts as one image.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from context_node.tokens.images import Size, decode_start, image_size

OPENAI, ANTHROPIC, GOOGLE = "openai", "anthropic", "google"

OPENAI_BASE_TOKENS: Final = 85
OPENAI_TILE_TOKENS: Final = 170
OPENAI_TILE_PX: Final = 512
OPENAI_LONG_SIDE_PX: Final = 2048
OPENAI_SHORT_SIDE_PX: Final = 768
OPENAI_IMAGE_DEFAULT_TOKENS: Final = 765
"""An image of unknown size: that of 1024 × 1024 pixels, OpenAI's own example."""

ANTHROPIC_PX_PER_TOKEN: Final = 750
ANTHROPIC_LONG_SIDE_PX: Final = 1568
ANTHROPIC_IMAGE_TOKENS_MAX: Final = 1600
"""Larger images are scaled down to about this, so it is also what an image of unknown size costs."""

GOOGLE_TILE_TOKENS: Final = 258
GOOGLE_TILE_PX: Final = 768
GOOGLE_SMALL_PX: Final = 384
GOOGLE_IMAGE_DEFAULT_TOKENS: Final = 4 * GOOGLE_TILE_TOKENS
"""An image of unknown size: four tiles, as for 1024 × 1024 pixels."""

PDF_PAGE_TOKENS: Final = 3000
"""The upper end of Anthropic's published range: pages are sent as text and image. OpenAI publishes no figure."""

AUDIO_TOKENS_PER_S: Final = {OPENAI: 10, ANTHROPIC: 10, GOOGLE: 32}
AUDIO_DEFAULT_S: Final = 60
AUDIO_BYTES_PER_S: Final = 16_000
"""To guess the length of inline audio that is not WAV: 128 kbit/s, the usual rate of MP3."""

VIDEO_TOKENS_PER_S: Final = 263
VIDEO_DEFAULT_S: Final = 60

FILE_DEFAULT_TOKENS: Final = PDF_PAGE_TOKENS
"""A file of unknown kind: as one page."""

DIMENSION_MAX: Final = 1_000_000
"""Widths, heights, seconds and pages beyond this are not believed."""

MEDIA_TOKENS_MAX: Final = 10_000_000
"""No part costs more, whatever it says of itself; it is also the largest budget that a context may have."""

# fmt: off
MEDIA_TYPES: Final = frozenset([
    "image", "image_url", "input_image", "image-data", "image-url",
    "audio", "input_audio", "video", "media",
    "file", "file-data", "file-url", "input_file", "document",
])
# fmt: on
"""The `type` of parts that are media: as the product names them, and as the common SDKs do."""

_NESTED = ("image_url", "image", "file", "input_audio", "audio", "video", "source")
_DATA = ("data", "url", "file_data", "image_url", "image", "audio", "video", "file_url", "base64")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,")
_PDF_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")
_PDF_COUNT = re.compile(rb"/Count\s+(\d{1,5})\b")


class Media(NamedTuple):
    """What a media part says of itself. `kind` is image, audio, video, pdf, text or file; `data` is inline base64, and
    `text` what is inline as plain text."""

    kind: str
    provider: str
    data: str | None
    text: str | None
    detail: str | None
    fields: tuple[Mapping[str, Any], ...]

    def number(self, *names: str) -> float | None:
        """The first of the fields `names` that is a credible positive number."""
        for fields in self.fields:
            for name in names:
                value = fields.get(name)
                if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= DIMENSION_MAX:
                    return float(value)
        return None


def media_tokens(part: Mapping[str, Any]) -> int | str:
    """The cost of a media part in tokens, or the text to count if it is a text file. Never raises."""
    media = describe(part)
    if media.text is not None:
        return media.text
    if media.kind == "text" and media.data is not None:
        return decode_start(media.data, len(media.data)).decode("utf-8", "replace")
    return min(MEDIA_TOKENS_MAX, _binary_tokens(media))


def image_tokens(provider: str, size: Size | None, detail: str | None = None) -> int:
    """The published cost of one image. `size` is (width, height) in pixels, None if unknown; `detail` is OpenAI's."""
    if provider == ANTHROPIC:
        return _anthropic_image_tokens(size)
    if provider == GOOGLE:
        return _google_image_tokens(size)
    return OPENAI_BASE_TOKENS if detail == "low" else _openai_image_tokens(size)


def describe(part: Mapping[str, Any]) -> Media:
    """Find provider, kind, inline data and stated sizes, in whichever of the known shapes the part comes."""
    nested = tuple(value for name in _NESTED if isinstance(value := part.get(name), Mapping))
    fields = (part, *nested)
    media_type = _first_str(fields, ("mediaType", "media_type", "mimeType", "mime_type")) or ""
    data, text = None, None
    for value in _candidates(fields):
        if value[:5] == "data:" and (match := _DATA_URL.match(value[:256])):
            media_type = match[1] or media_type
            content = value[match.end() :]
            data, text = (content, None) if match[3] else (None, unquote(content))
            break
        if "://" not in value[:16]:
            data = value
            break
    source = part.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        data, text = None, data
    detail = _first_str(fields, ("detail", "imageDetail"))
    return Media(_kind(str(part.get("type", "")), media_type, fields), _provider(part), data, text, detail, fields)


def _binary_tokens(media: Media) -> int:
    match media.kind:
        case "image":
            return image_tokens(media.provider, _size(media), media.detail)
        case "audio":
            seconds = media.number("duration_s", "duration", "seconds") or _audio_seconds(media.data)
            return math.ceil(seconds * AUDIO_TOKENS_PER_S[media.provider])
        case "video":
            return math.ceil((media.number("duration_s", "duration", "seconds") or VIDEO_DEFAULT_S) * VIDEO_TOKENS_PER_S)
        case "pdf":
            pages = media.number("pages", "page_count", "pageCount") or _pdf_pages(media.data)
            return math.ceil(pages) * (GOOGLE_TILE_TOKENS if media.provider == GOOGLE else PDF_PAGE_TOKENS)
        case _:
            return FILE_DEFAULT_TOKENS


def _provider(part: Mapping[str, Any]) -> str:
    """Anthropic's parts carry a `source`; the AI SDK's name the provider among their options."""
    for name in ("providerOptions", "provider_options", "providerMetadata"):
        options = part.get(name)
        if isinstance(options, Mapping):
            for provider in (ANTHROPIC, GOOGLE, OPENAI):
                if provider in options:
                    return provider
    named = part.get("provider")
    if named in (OPENAI, ANTHROPIC, GOOGLE):
        return str(named)
    return ANTHROPIC if isinstance(part.get("source"), Mapping) else OPENAI


def _candidates(fields: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    """Strings that may be the content or its address, the innermost first."""
    for source in reversed(fields):
        for name in _DATA:
            if isinstance(value := source.get(name), str):
                yield value


def _kind(part_type: str, media_type: str, fields: tuple[Mapping[str, Any], ...]) -> str:
    family, _, subtype = media_type.lower().partition("/")
    if family in ("image", "audio", "video"):
        return family
    if subtype == "pdf":
        return "pdf"
    if family == "text" or subtype in ("json", "xml", "yaml", "x-yaml", "csv"):
        return "text"
    for family in ("image", "audio", "video"):
        if family in part_type:
            return family
    name = _first_str(fields, ("filename", "name", "title")) or ""
    if part_type == "document" or name.lower().endswith(".pdf"):
        return "pdf"
    return "file"


def _first_str(fields: tuple[Mapping[str, Any], ...], names: tuple[str, ...]) -> str | None:
    for source in fields:
        for name in names:
            if isinstance(value := source.get(name), str):
                return value
    return None


def _size(media: Media) -> Size | None:
    width, height = media.number("width"), media.number("height")
    if width and height:
        return math.ceil(width), math.ceil(height)
    return image_size(media.data) if media.data else None


def _openai_image_tokens(size: Size | None) -> int:
    """Scale to fit 2048 × 2048, then the short side to 768, then 170 for each tile of 512 × 512 begun, and 85."""
    if size is None:
        return OPENAI_IMAGE_DEFAULT_TOKENS
    width, height = _shrink(size, OPENAI_LONG_SIDE_PX, max(size))
    width, height = _shrink((width, height), OPENAI_SHORT_SIDE_PX, min(width, height))
    tiles = math.ceil(width / OPENAI_TILE_PX) * math.ceil(height / OPENAI_TILE_PX)
    return OPENAI_BASE_TOKENS + OPENAI_TILE_TOKENS * tiles


def _anthropic_image_tokens(size: Size | None) -> int:
    """Width × height / 750, after scaling the long side to 1568 and the whole to about 1,600 tokens."""
    if size is None:
        return ANTHROPIC_IMAGE_TOKENS_MAX
    width, height = _shrink(size, ANTHROPIC_LONG_SIDE_PX, max(size))
    return min(ANTHROPIC_IMAGE_TOKENS_MAX, math.ceil(width * height / ANTHROPIC_PX_PER_TOKEN))


def _google_image_tokens(size: Size | None) -> int:
    """258 where both sides are at most 384 pixels, else 258 for each tile of 768 × 768 begun."""
    if size is None:
        return GOOGLE_IMAGE_DEFAULT_TOKENS
    width, height = size
    if width <= GOOGLE_SMALL_PX and height <= GOOGLE_SMALL_PX:
        return GOOGLE_TILE_TOKENS
    return math.ceil(width / GOOGLE_TILE_PX) * math.ceil(height / GOOGLE_TILE_PX) * GOOGLE_TILE_TOKENS


def _shrink(size: Size, side_px: int, actual_px: int) -> Size:
    """`size` scaled so that the side of `actual_px` becomes `side_px`; never larger. Whole numbers, rounded half up."""
    if actual_px <= side_px:
        return size
    width, height = ((2 * side * side_px + actual_px) // (2 * actual_px) for side in size)
    return max(1, width), max(1, height)


def _audio_seconds(data: str | None) -> float:
    """The length of inline audio: from a WAV header's byte rate, else guessed from its size."""
    if data is None:
        return AUDIO_DEFAULT_S
    size_bytes = len(data) * 3 // 4
    head = decode_start(data, 36)
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt " and (rate := int.from_bytes(head[28:32], "little")):
        return size_bytes / rate
    return size_bytes / AUDIO_BYTES_PER_S


def _pdf_pages(data: str | None) -> int:
    """The pages of an inline PDF as far as its objects stand in clear; at least 1."""
    if data is None:
        return 1
    content = decode_start(data, len(data))
    return len(_PDF_PAGE.findall(content)) or max((int(count) for count in _PDF_COUNT.findall(content)), default=1) or 1
