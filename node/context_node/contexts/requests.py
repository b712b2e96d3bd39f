"""What a caller asks of a context, as validated values.

Knows the meaning and the range of every field. Knows neither JSON nor HTTP: the edge (`http/`) parses bytes into these types and the
runtime turns them into commands. Invariant: whoever holds one of these values may trust it; nothing inside checks it again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Part = Mapping[str, Any]
"""A part: a JSON object with a string `type`, kept exactly as it came."""


class NewMessage(msgspec.Struct, frozen=True, gc=False):
    """A message on its way into a history.

    `role` is 1–32 characters of `[a-z_]`; `parts` has at least one part, each valid by `parts.check_part`; `metadata` is a JSON object.
    `token_count`, if the client gave one, is the whole cost of the message and wins over the server's count; range [0, 10_000_000].
    `id` is the client's own name for the message and makes a retry safe for ever (H4). `pinned` keeps the message's unit in
    the window (W3).
    """

    role: str
    parts: Sequence[Part]
    metadata: Mapping[str, Any] = {}
    token_count: int | None = None
    id: str | None = None
    pinned: bool = False


class Append(msgspec.Struct, frozen=True, gc=False):
    """Append one message, or several atomically. `batch` tells which form the caller used: the reply of a batch has more fields.

    `if_version` and `if_seq` must equal the context's `version` and `last_seq` at the moment of applying, or nothing happens.
    """

    messages: Sequence[NewMessage]
    batch: bool = False
    if_version: int | None = None
    if_seq: int | None = None
    create: bool = False
    key: str | None = None


class PolicyChoice(msgspec.Struct, frozen=True):
    """Which policy compacts a window: either `strategy` with its `config`, or `ref`, the name of a policy. Exactly one is set."""

    strategy: str | None = None
    config: Mapping[str, Any] = {}
    ref: str | None = None


class PutContext(msgspec.Struct, frozen=True):
    """Create a context or change its configuration. `None` means: keep what it has (or, at creation, the default).

    `token_budget` in [1, 10_000_000]; ratios with 0 < target < trigger <= 1. `metadata` replaces the whole metadata object.
    `recount` counts the window again with the (new) tokenizer.
    """

    token_budget: int | None = None
    trigger_ratio: float | None = None
    target_ratio: float | None = None
    policy: PolicyChoice | None = None
    tokenizer: str | None = None
    metadata: Mapping[str, Any] | None = None
    recount: bool = False
    key: str | None = None


class PatchMetadata(msgspec.Struct, frozen=True):
    """RFC 7396 JSON merge patch of the context's metadata."""

    patch: Mapping[str, Any]
    key: str | None = None


class Compact(msgspec.Struct, frozen=True):
    """Rewrite the window by hand (SEMANTICS.md, "Rewriting by hand").

    With `covers` (from_seq, to_seq; inclusive) the replacement takes the place of that range; else it replaces the whole window, or what is
    not newer than `through_seq`. `rebuild` makes the window anew from history instead; it excludes every other field but `if_version`.
    """

    replacement: Sequence[NewMessage] = ()
    covers: tuple[int, int] | None = None
    through_seq: int | None = None
    if_version: int | None = None
    rebuild: bool = False
    key: str | None = None


class ListContexts(msgspec.Struct, frozen=True):
    """One page of the list of contexts. `metadata` maps top-level keys to the text their scalar value must have.

    `order` is `id` or `-updated_at`; `limit` in [1, 1000]; `cursor` is opaque and comes from the page before.
    """

    prefix: str = ""
    status: Literal["active", "tombstoned", "any"] = "active"
    metadata: Mapping[str, str] = {}
    order: Literal["id", "-updated_at"] = "id"
    limit: int = 100
    cursor: str | None = None


class PutPolicy(msgspec.Struct, frozen=True):
    """Create or replace a policy by name. `None` leaves the budget, ratios or tokenizer to the cluster's defaults."""

    strategy: str
    config: Mapping[str, Any] = {}
    token_budget: int | None = None
    trigger_ratio: float | None = None
    target_ratio: float | None = None
    tokenizer: str | None = None
    default: bool = False
