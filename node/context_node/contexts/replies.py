"""What the state machine answers: small frozen values that are also what an idempotency key remembers.

Field names are those of the HTTP API. Times are milliseconds since the Unix epoch here and become RFC 3339 at the edge.
"""

from typing import Any, Literal

import msgspec


class Appended(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=1):
    """The answer to an append. `seq` is that of the last message; `forced` tells that W1 made the window evict under a
    policy that would not."""

    first_seq: int
    last_seq: int
    version: int
    token_estimate: int
    forced: bool = False


class Rewritten(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The answer to a compact, pin or unpin."""

    version: int


class Put(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The answer to a PUT, PATCH, DELETE of a context: whether it is new, and what changed."""

    created: bool
    version: int
    revision: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The answer to a command that has nothing to tell: purge, policy copied, nothing to do."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A refusal as a value, so that applying never raises: `code` names a class in `refusals.py`."""

    code: str
    message: str
    details: dict[str, Any]


class NodeNumber(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The answer to a store that asks to be a member: its number in the cluster."""

    number: int


class RestoredUpTo(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The answer to a part of a restore: the newest message that is there, and whether the context is whole."""

    last_seq: int
    is_whole: bool


Reply = Appended | Rewritten | Put | Done | Refused | NodeNumber | RestoredUpTo


class PolicyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a context's policy is shown: as it was given, plus `deleted` where a named policy is gone."""

    strategy: str | None = None
    config: dict[str, Any] | None = None
    ref: str | None = None
    generation: int | None = None
    deleted: bool = False


class ContextView(msgspec.Struct, frozen=True):
    """A context as GET shows it. Tokens are whole numbers; `used_tokens` is the window's size."""

    id: str
    status: Literal["active", "tombstoned", "restoring"]
    token_budget: int
    trigger_ratio: float
    target_ratio: float
    policy: PolicyView
    tokenizer: str
    metadata: dict[str, Any]
    version: int
    revision: int
    incarnation: str
    last_seq: int
    archived_seq: int
    used_tokens: int
    created_at_ms: int
    updated_at_ms: int
    tombstoned_at_ms: int | None


class NamedPolicyView(msgspec.Struct, frozen=True):
    """A policy by name. `generation` grows by one with each change."""

    name: str
    generation: int
    strategy: str
    config: dict[str, Any]
    token_budget: int | None
    trigger_ratio: float | None
    target_ratio: float | None
    tokenizer: str | None
    default: bool
    created_at_ms: int
    updated_at_ms: int
