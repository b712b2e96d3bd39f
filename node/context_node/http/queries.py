"""Query strings: which parameters there are, and what they may be.

Knows names, types and ranges; the OpenAPI document is made from the same types. Does not know what they do. Invariants: a parameter that is
unknown or given twice is refused by name; a number is written in plain digits.
"""

import re
from collections.abc import Hashable
from functools import cache, lru_cache
from typing import Annotated, Any, Literal, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, inspect

from context_node.contexts.refusals import InvalidRequest
from context_node.http.codec import query_problem
from context_node.http.schemas import SEQ_MAX, Budget

Q = TypeVar("Q")

REMEMBERED_CHARACTERS_MAX = 64
FIELDS_MAX = 64
METADATA_PREFIX = "metadata."
_INTEGER = re.compile(r"-?\d{1,19}\Z", re.ASCII)

Limit = Annotated[int, Meta(ge=1, le=1000, description="Most messages in the answer.")]
FromSeq = Annotated[int, Meta(ge=-SEQ_MAX, le=SEQ_MAX, description="First seq of the page; negative counts from the end.")]
Consistency = Literal["linearizable", "local"]
StreamCursor = Annotated[
    int,
    Meta(ge=-1, le=SEQ_MAX, description="The last seq you have seen; -1 begins at the present end. `Last-Event-ID` wins over it."),
]
MinVersion = Annotated[int, Meta(ge=0, le=SEQ_MAX, description="With `consistency=local`: wait until the replica has this version.")]


def local_of(query: "ReadQuery | PageQuery | TailQuery | WindowQuery") -> int | None:
    """What a read is asked to be local to: None for a linearizable one, else the least version."""
    return (query.min_version or 0) if query.consistency == "local" else None


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route without parameters."""


class ReadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    consistency: Consistency = "linearizable"
    min_version: MinVersion | None = None


class AppendQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    create: Annotated[bool, Meta(description="Create the context with the cluster's defaults if it does not exist.")] = False


class DeleteQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    purge: Annotated[bool, Meta(description="Erase history and window for good instead of leaving a tombstone.")] = False


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefix: Annotated[str, Meta(max_length=256, description="Only ids that begin with this.")] = ""
    status: Literal["active", "tombstoned", "any"] = "active"
    order: Literal["id", "-updated_at"] = "id"
    limit: Annotated[int, Meta(ge=1, le=1000, description="Most contexts in the answer.")] = 100
    cursor: Annotated[str, Meta(max_length=4096, description="`next_cursor` of the page before.")] | None = None


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    from_seq: FromSeq | None = None
    limit: Limit = 100
    direction: Literal["asc", "desc"] = "asc"
    consistency: Consistency = "linearizable"
    min_version: MinVersion | None = None


class TailQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    offset: Annotated[int, Meta(ge=0, le=SEQ_MAX, description="How many of the newest messages to skip.")] = 0
    limit: Limit = 100
    consistency: Consistency = "linearizable"
    min_version: MinVersion | None = None


class WindowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    budget_tokens: Annotated[Budget, Meta(description="Fit the window to this smaller budget for this read.")] | None = None
    if_version: Annotated[int, Meta(ge=0, le=SEQ_MAX, description="409 unless the window has this version.")] | None = None
    at_version: Annotated[int, Meta(ge=0, le=SEQ_MAX, description="Not available yet.")] | None = None
    format: Annotated[Literal["parts", "openai", "anthropic", "ai-sdk"], Meta(description="Only `parts` is available yet.")] = "parts"
    consistency: Consistency = "linearizable"
    min_version: MinVersion | None = None


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cursor: StreamCursor = 0
    ticket: Annotated[str, Meta(max_length=512, description="A stream ticket, instead of a key.")] | None = None


def parse_query(text: str, query_type: type[Q]) -> Q:
    """The typed parameters of a query string (without `?`). Raises `InvalidRequest`."""
    if len(text) <= REMEMBERED_CHARACTERS_MAX and query_type is not StreamQuery:
        # Streams carry tickets, which are not to be kept. Query types are
        # frozen, and clients ask with the same few strings again and again.
        return cast(Q, _remembered(text, cast(Hashable, query_type)))
    return typed(fields_of(text), query_type)


@lru_cache(maxsize=1024)
def _remembered(text: str, query_type: Any) -> object:
    return typed(fields_of(text), query_type) if text else query_type()


def parse_list_query(text: str) -> tuple[ListQuery, dict[str, str]]:
    """As `parse_query` for the list of contexts, with its `metadata.KEY=VALUE` filters apart."""
    fields = fields_of(text)
    metadata = {name[len(METADATA_PREFIX) :]: fields.pop(name) for name in list(fields) if name.startswith(METADATA_PREFIX)}
    return typed(fields, ListQuery), metadata


def fields_of(text: str) -> dict[str, str]:
    """Names and values of a query string. Raises `InvalidRequest` on a repeated name, on too many, and on bytes that are not UTF-8."""
    if not text:
        return {}
    try:
        text.encode()
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except UnicodeError:
        raise InvalidRequest("The query string is not valid UTF-8.", field="query") from None
    except ValueError:
        raise InvalidRequest(f"The query string has more than {FIELDS_MAX} parameters.", field="query") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"The parameter {name[:100]} is given twice.", field=name[:100])
        fields[name] = value
    return fields


def typed(fields: dict[str, str], query_type: type[Q]) -> Q:
    """Convert texts to the types of the query's fields."""
    values: dict[str, object] = dict(fields)
    for name in integer_fields(query_type) & values.keys():  # type: ignore[arg-type]
        # msgspec would also read "1e2" and "1.0" as integers.
        if not _INTEGER.match(fields[name]):
            raise InvalidRequest(f"{name} must be a whole number in at most 19 plain digits.", field=name)
        values[name] = int(fields[name])
    try:
        return msgspec.convert(values, query_type, strict=False)
    except msgspec.ValidationError as error:
        raise query_problem(str(error)) from None


@cache
def integer_fields(query_type: Hashable) -> frozenset[str]:
    """The parameters of a query type that are whole numbers."""
    shape = inspect.type_info(query_type)
    assert isinstance(shape, inspect.StructType)
    return frozenset(field.name for field in shape.fields if _is_integer(field.type))


def _is_integer(shape: inspect.Type) -> bool:
    if isinstance(shape, inspect.Metadata):
        return _is_integer(shape.type)
    if isinstance(shape, inspect.UnionType):
        return any(_is_integer(one) for one in shape.types)
    return isinstance(shape, inspect.IntType)
