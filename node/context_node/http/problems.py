"""The one table from a refusal to an HTTP status, and the shape of every error answer.

Knows codes, statuses and the JSON of an error. Does not know why something was refused: the refusal says that itself. Invariants: an error
is `{"error", "message", "details"}`; a refusal that is not in the table is a bug and answers 500 without its inside.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from context_node.contexts import refusals
from context_node.contexts.refusals import Refusal
from context_node.http.replies import Reply, json_reply


class Unauthenticated(Refusal):
    """No key, or one that is not known or is revoked."""

    code = "unauthenticated"


class Forbidden(Refusal):
    """The key is good but lacks the scope; or a browser's page comes from an origin that is not allowed."""

    code = "forbidden"


class RouteNotFound(Refusal):
    code = "route_not_found"


class MethodNotAllowed(Refusal):
    code = "method_not_allowed"


class UnsupportedMediaType(Refusal):
    code = "unsupported_media_type"


class NotAvailable(Refusal):
    """A documented feature that this version does not have yet."""

    code = "not_available"


class ExpectationFailed(Refusal):
    code = "expectation_failed"


class InternalError(Refusal):
    """A fault of ours. The log has the details under the request's id; the answer never does."""

    code = "internal_error"


STATUS_OF: Mapping[str, int] = {
    refusals.InvalidRequest.code: 400,
    Unauthenticated.code: 401,
    Forbidden.code: 403,
    refusals.ContextNotFound.code: 404,
    refusals.MessageNotFound.code: 404,
    refusals.PolicyNotFound.code: 404,
    RouteNotFound.code: 404,
    MethodNotAllowed.code: 405,
    refusals.ContextTombstoned.code: 409,
    refusals.VersionConflict.code: 409,
    refusals.IdempotencyConflict.code: 409,
    refusals.PolicyDeleted.code: 409,
    refusals.CursorAhead.code: 409,
    refusals.TooLarge.code: 413,
    UnsupportedMediaType.code: 415,
    ExpectationFailed.code: 417,
    refusals.Unprocessable.code: 422,
    refusals.InvalidPolicy.code: 422,
    NotAvailable.code: 422,
    refusals.Overloaded.code: 503,
    refusals.Unavailable.code: 503,
    refusals.ArchiveUnavailable.code: 503,
    refusals.OutcomeUnknown.code: 503,
    InternalError.code: 500,
}
"""Every code that a client can meet. A full queue is 503 rather than 429: it is the node that is busy, not this caller who asks too
often."""

RETRY_AFTER_S_DEFAULT = 1


def status_of(refusal: Refusal) -> int:
    return STATUS_OF.get(refusal.code, 500)


def problem_body(refusal: Refusal) -> bytes:
    """The JSON of an error answer."""
    return encode_problem(refusal.code, refusal.message, refusal.details)


def encode_problem(code: str, message: str, details: Mapping[str, Any]) -> bytes:
    # What came from a client may hold a lone surrogate (a path in bytes that are not UTF-8): never let it break the answer itself.
    problem = {"error": code, "message": message, "details": dict(details)}
    try:
        return msgspec.json.encode(problem)
    except UnicodeEncodeError:
        return msgspec.json.encode({"error": code, "message": printable(message), "details": {}})


def printable(text: str) -> str:
    """`text` with whatever UTF-8 cannot carry replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def problem(refusal: Refusal) -> Reply:
    """The answer to a refused request."""
    status = STATUS_OF.get(refusal.code)
    if status is None:
        return problem(InternalError("Something went wrong on our side; the node's log has more under this request's id."))
    headers: list[tuple[str, str]] = []
    if status == 503 or status == 429:
        headers.append(("Retry-After", str(_retry_after_s(refusal))))
    elif status == 401:
        headers.append(("WWW-Authenticate", 'Bearer realm="contextstore"'))
    elif status == 405:
        headers.append(("Allow", str(refusal.details.get("allow", ""))))
    return json_reply(status, problem_body(refusal), headers)


def _retry_after_s(refusal: Refusal) -> int:
    given = refusal.details.get("retry_after_s", RETRY_AFTER_S_DEFAULT)
    return max(1, round(given)) if isinstance(given, int | float) else RETRY_AFTER_S_DEFAULT
