"""Every way in which the state machine, or the runtime around it, says no.

A refusal is an expected answer, not a fault: it has a code for programs, a sentence for people that says what to do, and details.
`http/problems.py` holds the one table from code to status. Nothing here knows of HTTP.
"""

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """An expected refusal. `code` is stable and snake_case; `message` is a sentence that says what to do; `details` is JSON-able."""

    code = "refused"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Any] = details


class InvalidRequest(Refusal):
    """A field has a value that can't be meant. `details["field"]` is its path."""

    code = "invalid_request"


class Unprocessable(Refusal):
    """The request is well-formed but cannot be done to this context."""

    code = "unprocessable"


class InvalidPolicy(Refusal):
    """A policy that is nonsense: unknown strategy, unknown or bad config field."""

    code = "invalid_policy"


class ContextNotFound(Refusal):
    code = "context_not_found"


class MessageNotFound(Refusal):
    code = "message_not_found"


class PolicyNotFound(Refusal):
    code = "policy_not_found"


class ContextTombstoned(Refusal):
    """The context was deleted: it can be read but takes no more writes until a PUT revives it."""

    code = "context_tombstoned"


class VersionConflict(Refusal):
    """`if_version`, `if_seq` or the range's own check did not hold. `details` carry the current `version` and `last_seq`."""

    code = "version_conflict"


class IdempotencyConflict(Refusal):
    """The key or message id was used before with another content."""

    code = "idempotency_conflict"


class PolicyDeleted(Refusal):
    """The named policy is deleted: contexts that use it keep it, new references are refused."""

    code = "policy_deleted"


class CursorAhead(Refusal):
    """A stream cursor beyond the newest seq."""

    code = "cursor_ahead"


class TooLarge(Refusal):
    """A body, batch, message, id or metadata above its limit."""

    code = "too_large"


class Overloaded(Refusal):
    """A queue is full; nothing was done. `details["retry_after_s"]` says when to try again."""

    code = "overloaded"


class Unavailable(Refusal):
    """The node cannot serve this now (starting, draining, storage gone). Nothing was done."""

    code = "unavailable"


class ArchiveUnavailable(Refusal):
    """Part of the history is in the archive, which cannot be read now. Everything that is hot goes on."""

    code = "archive_unavailable"


class OutcomeUnknown(Refusal):
    """The write may or may not have happened. Retry with the same idempotency key to find out."""

    code = "outcome_unknown"
