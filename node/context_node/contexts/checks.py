"""What a command must find before it does anything: the context in the right state, its guards true, its drafts sound.

Knows refusals. Changes nothing.
"""

from collections.abc import Sequence

from context_node.contexts import rewriting
from context_node.contexts.commands import AppendMessages, Draft
from context_node.contexts.context import ACTIVE, RESTORING, Context
from context_node.contexts.refusals import ContextTombstoned, Unavailable, Unprocessable


def check_whole(context: Context) -> None:
    """Raises `Unavailable` while the context is being restored: what it will be is not all there."""
    if context.head.status == RESTORING:
        raise Unavailable(
            "This context is being restored; its history can be read as far as it is there, and all else waits until it is whole.",
            id=context.id,
            last_seq=context.head.last_seq,
            retry_after_s=5,
        )


def check_active(context: Context) -> None:
    """Raises `ContextTombstoned`, or `Unavailable` while it is being restored."""
    if context.head.status != ACTIVE:
        check_whole(context)
        raise ContextTombstoned("This context is deleted and takes no writes; PUT it to revive it.", id=context.id)


def check_guards(command: AppendMessages, version: int, last_seq: int) -> None:
    if command.if_version is None and command.if_seq is None:
        return
    for name, wanted, present in (("if_version", command.if_version, version), ("if_seq", command.if_seq, last_seq)):
        if wanted is not None and wanted != present:
            raise rewriting.version_conflict(
                f"{name} is {wanted}, but the context is at {present}; read it again and retry.", version, last_seq
            )


def check_drafts(drafts: Sequence[Draft]) -> None:
    if len(drafts) == 1:
        return
    if not drafts:
        raise Unprocessable("There is nothing to append; give at least one message.", field="messages")
    ids = [draft.id for draft in drafts if draft.id is not None]
    if len(set(ids)) != len(ids):
        raise Unprocessable("The batch names the same message id twice; give each message its own.", field="messages")
