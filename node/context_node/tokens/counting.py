"""How many tokens a text, a part or a message's parts cost.

Knows what each kind of part costs (text: its text; reasoning: its text; media: its provider's formula; all else: its
compact JSON). Does not know messages, windows or budgets; the overhead per message is added by whoever owns messages.

Invariants: counts are functions of their arguments alone, the same in every process; text is never read as a special
token; no text, however hostile, costs more than about 0.4 s per 2²⁰ characters or makes the tokenizer fail.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from context_node.tokens.encodings import encoding, word_counter
from context_node.tokens.media import MEDIA_TYPES, media_tokens

SLICE_CHARS_MAX: Final = 8192
"""Longer text is counted in slices. tiktoken's time grows faster than its input where it finds no word's end (1 MiB of
one letter: 0.5 s; of random letters: 0.9 s), and its pattern overflows its stack and panics at a million blanks in a
row. Slices end where a token must end anyway, so that the count is exact, unless there is no such place in the second
half of a slice: then the slice is cut where it is full, which may cost or save a token. With slices the same texts take
0.2 s and 0.25 s, the worst that was found (ideographic blanks) 0.4 s, and a million blanks 0.3 s."""

THREAD_CHARS_MIN: Final = 32 * 1024
"""Above this many characters counting belongs in a worker thread: up to here it takes at most some 9 ms (hostile text;
English: 1 ms), beyond it one client would stall the others. tiktoken releases the GIL while it counts."""

REASONING_TYPES: Final = frozenset({"reasoning", "thinking"})

# A place that no token of either encoding spans: behind a letter or digit, before a blank or a mark that is no letter,
# digit, combining mark or apostrophe. ("x" and what follows it: 's may belong to the word, a combining mark does.)
_TOKEN_END = re.compile(r".*[^\W_](?=[ \n!-&(-/:-@\[-`{-~。，、！？：；])", re.DOTALL)


def count_text(tokenizer: str, text: str) -> int:
    """Tokens of `text` as ordinary characters; range [0, UTF-8 bytes of text]. Lone surrogates count as U+FFFD.

    Raises UnknownTokenizer.
    """
    if len(text) <= SLICE_CHARS_MAX:
        return word_counter(tokenizer).count(text)
    # Not by words: a thread that counts long text shall not keep the interpreter from the others.
    encode = encoding(tokenizer).encode_ordinary
    total, start = 0, 0
    while start < len(text):
        end = _slice_end(text, start)
        total += len(encode(text[start:end]))
        start = end
    return total


def count_json(tokenizer: str, value: Any) -> int:
    """Tokens of the compact JSON of `value`. Raises UnknownTokenizer."""
    return count_text(tokenizer, _compact_json(value))


def count_parts(tokenizer: str, parts: Sequence[Mapping[str, Any]]) -> list[int]:
    """What each part costs, in order; each is at least 0. Raises UnknownTokenizer."""
    if len(parts) == 1:
        part = parts[0]
        if part["type"] == "text" and type(text := part.get("text")) is str and len(text) <= SLICE_CHARS_MAX:
            return [word_counter(tokenizer).count(text)]
    return [count_part(tokenizer, part) for part in parts]


def count_part(tokenizer: str, part: Mapping[str, Any]) -> int:
    """What one part costs. Raises UnknownTokenizer."""
    part_type = part["type"]
    if part_type == "text" or part_type in REASONING_TYPES:
        text = part.get("thinking") if part_type == "thinking" and "thinking" in part else part.get("text")
        if isinstance(text, str):
            return count_text(tokenizer, text)
    elif part_type in MEDIA_TYPES:
        return _media(tokenizer, part)
    elif media := _media_inside(part):
        return count_json(tokenizer, _without(part, media)) + sum(_media(tokenizer, each) for each in media)
    return count_json(tokenizer, part)


def count_outputs(tokenizer: str, parts: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Position → cost of the output alone, for parts that are a call and its result in one and have their result.

    That is what clearing such a result would save. Raises UnknownTokenizer.
    """
    costs: dict[int, int] = {}
    for position, part in enumerate(parts):
        part_type = part["type"]
        if part_type.startswith("tool-") or part_type == "dynamic-tool":
            output = part.get("output", part.get("errorText"))
            if output is not None and "toolCallId" in part and "state" in part:
                costs[position] = count_json(tokenizer, output)
    return costs


def needs_thread(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether counting these parts may take long enough to stall an event loop: more than `THREAD_CHARS_MIN` in all.

    Looks at lengths only and stops as soon as it knows. A caller that has the body's size can compare that instead.
    """
    left = THREAD_CHARS_MIN
    pending: list[Any] = list(parts)
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            left -= len(value)
        else:
            left -= 8
            if isinstance(value, Mapping):
                pending.extend(value.values())
            elif isinstance(value, (list, tuple)):
                pending.extend(value)
        if left < 0:
            return True
    return False


def distribute(total: int, weights: Sequence[int]) -> list[int]:
    """Spread `total` over `weights` by largest remainder: whole numbers, in proportion, that add up to `total`.

    Equal remainders go to earlier positions. Where all weights are 0 it spreads evenly; no weights give no shares.
    Raises ValueError if `total` or a weight is negative.
    """
    if total < 0 or any(weight < 0 for weight in weights):
        raise ValueError("total and weights must not be negative")
    if not weights:
        return []
    parts = list(weights) if any(weights) else [1] * len(weights)
    whole = sum(parts)
    shares = [total * part // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda place: (-(total * parts[place] % whole), place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def _slice_end(text: str, start: int) -> int:
    """Where the slice that begins at `start` ends: at most `SLICE_CHARS_MAX` characters on."""
    full = start + SLICE_CHARS_MAX
    if full >= len(text):
        return len(text)
    match = _TOKEN_END.match(text, start + SLICE_CHARS_MAX // 2, full + 1)
    return match.end() if match else full


def _media(tokenizer: str, part: Mapping[str, Any]) -> int:
    cost = media_tokens(part)
    return count_text(tokenizer, cost) if isinstance(cost, str) else cost


def _media_inside(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The media in a tool result's list of contents, such as screenshots: their base64 must not be counted as text."""
    output = part.get("content", part.get("output"))
    if isinstance(output, Mapping):
        output = output.get("value", output.get("content"))
    if not isinstance(output, list):
        return []
    return [item for item in output if isinstance(item, Mapping) and item.get("type") in MEDIA_TYPES]


def _without(part: Mapping[str, Any], media: list[Mapping[str, Any]]) -> dict[str, Any]:
    """`part` without `media` in its list of contents."""
    name = "content" if "content" in part else "output"
    output = part[name]
    if isinstance(output, Mapping):
        inner = "value" if "value" in output else "content"
        kept: Any = {**output, inner: _others(output[inner], media)}
    else:
        kept = _others(output, media)
    return {**part, name: kept}


def _others(items: list[Any], media: list[Mapping[str, Any]]) -> list[Any]:
    gone = {id(item) for item in media}
    return [item for item in items if id(item) not in gone]


def _compact_json(value: Any) -> str:
    try:
        return str(msgspec.json.encode(value), "utf-8")
    except UnicodeEncodeError:  # a lone surrogate: refused at the edge, but counting must not be what fails
        return str(msgspec.json.encode(_sound(value)), "utf-8")


def _sound(value: Any) -> Any:
    """`value` with lone surrogates replaced as `count_text` replaces them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {cast(str, _sound(name)): _sound(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sound(item) for item in value]
    return value
