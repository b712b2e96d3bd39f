"""The only place where JSON from outside becomes values.

Knows I-JSON (RFC 7493) and how to name the field that is wrong. Does not know what a body means: a decoder for a type is passed in.
Invariants: nesting is bounded before anything recursive sees the bytes; what comes out has no NaN or infinity, no integer outside [-2^63,
2^63), no lone surrogate; of equal keys the last wins.
"""

import re
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from context_node.contexts.refusals import InvalidRequest

T = TypeVar("T")

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

# Possessive, and content with the end of the data instead of a closing quote: linear whatever the bytes are.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes
# Every digit as 0: a run of 19 is then a plain search, thirty times faster than a regular expression.
_DIGITS = bytes(ord("0") if byte in b"0123456789" else 0 for byte in range(256))
_LONG_INTEGER = b"0" * 19
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AT_PATH = re.compile(r" - at `(.+)`$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)
_KEY_AT = "`key`"

PATH_CHARACTERS_MAX = 200
CONTAINERS_MAX = 400_000
"""Most opening brackets in one body, wherever they stand: above the 1000 messages with 256 parts that a batch may hold, and far below the
millions of empty lists that would keep the event loop busy for seconds."""


def decode(data: bytes, decoder: "msgspec.json.Decoder[T]", depth_max: int) -> T:
    """Decode a body. Raises `InvalidRequest` whose details name the field, as far as there is one."""
    brackets = data.count(b"{") + data.count(b"[")
    if brackets > depth_max:
        if brackets > CONTAINERS_MAX:
            raise InvalidRequest(f"The body has more than {CONTAINERS_MAX} objects and arrays; send it in parts.", field="body")
        check_depth(data, depth_max)
    try:
        value = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid_value(str(error)) from None
    except msgspec.DecodeError as error:
        raise _malformed(data, str(error)) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.", field="body") from None
    except RecursionError:
        raise too_deep(depth_max) from None
    if _LONG_INTEGER in data.translate(_DIGITS):
        check_integers(value)
    return value


def check_depth(data: bytes, depth_max: int) -> None:
    """Refuse what is nested deeper than `depth_max` levels. Linear in the size; no recursion.

    A body that is not JSON may pass here: the decoder refuses it. Only brackets outside of strings count.
    """
    brackets = _STRINGS.sub(b"", data).translate(_STEPS, _NOT_BRACKETS)
    if max(accumulate(memoryview(brackets).cast("b")), default=0) > depth_max:
        raise too_deep(depth_max)


def too_deep(depth_max: int) -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {depth_max} levels; flatten it.", field="body", depth_max=depth_max)


def check_integers(value: Any) -> None:
    """Refuse integers outside [-2^63, 2^63): other readers of the same JSON would round them. Called only where long digits were seen."""
    # Iterative: a decoded value is as deep as the depth limit allows, which is no reason to recurse.
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if type(one) is int:
            if not INTEGER_MIN <= one <= INTEGER_MAX:
                raise InvalidRequest("An integer in the body is outside of [-2^63, 2^63); send it as a string.", field="body")
        elif type(one) is dict:
            waiting.extend(one.values())
        elif type(one) is list or type(one) is tuple:
            waiting.extend(one)
        elif isinstance(one, msgspec.Struct):
            waiting.extend(getattr(one, name) for name in one.__struct_fields__)


def _malformed(data: bytes, problem: str) -> InvalidRequest:
    if not data.strip():
        return InvalidRequest("The body is empty; send a JSON object.", field="body")
    if "surrogate" in problem or ("truncated" in problem and _SURROGATE.search(data[-32:])):
        return InvalidRequest("A string in the body holds a lone surrogate (half of a UTF-16 pair).", field="body", why=problem)
    return InvalidRequest(f"The body is not valid JSON: {_as_clause(problem)}.", field="body", why=problem)


def _as_clause(problem: str) -> str:
    text = problem.removeprefix("JSON is malformed: ").rstrip(".")
    return text[:1].lower() + text[1:]


def query_problem(problem: str) -> InvalidRequest:
    """The refusal for what msgspec says of converted query parameters."""
    return _invalid_value(problem, "parameter")


def _invalid_value(problem: str, what: str = "field") -> InvalidRequest:
    """A refusal from msgspec's sentence, `Expected `int`, got `str` - at `$.message.token_count``."""
    path = ""
    where = _AT_PATH.search(problem)
    if where:
        path = where.group(1).removeprefix("$").lstrip(".")
        problem = problem[: where.start()]
    # Where a key of an object is wrong, msgspec writes its path as `key` in `$.x`.
    path = path.replace(_KEY_AT, "key")
    unknown = _UNKNOWN_FIELD.match(problem) or _MISSING_FIELD.match(problem)
    if unknown:
        field = _shortened(f"{path}.{unknown.group(1)}" if path else unknown.group(1))
        if problem.startswith("Object missing"):
            return InvalidRequest(f"{field} is required.", field=field)
        return InvalidRequest(f"{field} is not a {what} of this request; check its spelling.", field=field)
    field = _shortened(path or "body")
    return InvalidRequest(f"{field}: {_as_clause(problem).replace('`', '')}.", field=field)


def _shortened(path: str) -> str:
    return path if len(path) <= PATH_CHARACTERS_MAX else path[: PATH_CHARACTERS_MAX - 1] + "…"
