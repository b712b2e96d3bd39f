"""Limits on the part of a window that never leaves it.

Eviction bounds everything else; system and pinned messages, and calls that wait for results, are floor. Without a limit of their own one
client could make every later look at its context cost seconds. Looks only; refuses with a word on what to do.
"""

from context_node.contexts.commands import AppendMessages
from context_node.contexts.compaction import WINDOW_BYTES_MAX
from context_node.contexts.items import HEAD_ROLES
from context_node.contexts.parts import CALL, CALL_AND_RESULT, RESULT
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.window import Window

WAITING_CALLS_MAX = 1_000
"""So many calls of a context may wait for their results at once, revision 1."""

NO_WINDOW = Window()


def check_floor(window: Window, command: AppendMessages) -> None:
    """Raises `Unprocessable` for an append that would take the floor of `window` above its limits."""
    drafts = command.drafts
    parts = sum([len(draft.marks) for draft in drafts])
    if window.head_count + window.waiting + parts <= WAITING_CALLS_MAX and window.size_bytes <= WINDOW_BYTES_MAX:
        return
    kinds = [mark.kind for draft in drafts for mark in draft.marks]
    calls = sum(kind in (CALL, CALL_AND_RESULT) for kind in kinds)
    waiting = window.waiting + calls - kinds.count(RESULT)
    if calls and waiting > WAITING_CALLS_MAX:
        raise Unprocessable(
            f"{waiting} tool calls would wait for their results, more than {WAITING_CALLS_MAX}; append results first.",
            waiting=window.waiting,
        )
    heads = sum(draft.pinned or draft.role in HEAD_ROLES for draft in drafts)
    is_full = window.head_count + heads > command.rules.window_items_max or window.size_bytes > WINDOW_BYTES_MAX
    if heads and is_full:
        raise Unprocessable(
            "The window holds too many system and pinned messages; unpin some, or replace them by a compact of the whole window.",
            field="messages",
        )
