"""What the archive has confirmed, and what leaves the hot store for it.

Knows marks, and which messages of a context have to stay. Does not know the archive: the leader says what it holds. Invariants: a trim
never passes what the archive has confirmed (H6); what a window holds stays hot, or comes back with the command that puts it there; nothing
of it is a change that a client sees.
"""

from collections.abc import Iterable

from context_node.contexts.changes import rowid
from context_node.contexts.commands import NoteArchived, Restored, UseArchive
from context_node.contexts.context import Context
from context_node.contexts.items import LIVE
from context_node.contexts.refusals import Unprocessable
from context_node.contexts.replies import Done, Reply
from context_node.contexts.shard_state import ShardState


def use_archive(state: ShardState, command: UseArchive) -> Reply:
    """Begin with an archive. Raises `Unprocessable` where another one has messages that are nowhere else."""
    if command.archive_id == state.archive_id:
        return Done()
    if state.has_trimmed:
        raise Unprocessable(
            f"Messages of this shard are in archive {state.archive_id} only, and this one is {command.archive_id}: use that one, or copy "
            "it whole, with its meta table.",
            archive_id=state.archive_id,
        )
    state.archive_id = command.archive_id
    state.archive_epoch += 1
    return Done()


def note_archived(state: ShardState, command: NoteArchived) -> Reply:
    """Take marks over, as far as they are ahead: no version, no time. Those of another incarnation are old news."""
    gone: dict[int, list[tuple[int, int]]] = {}
    for mark in command.archived:
        context = state.contexts.get(mark.context_id)
        if context is None or context.head.incarnation != mark.incarnation:
            continue
        head = context.head
        if head.archive_epoch != state.archive_epoch:
            head.archived_seq = head.archived_revision = 0
            head.archive_epoch = state.archive_epoch
        if head.archived_seq < mark.seq <= head.last_seq:
            head.archived_seq = mark.seq
        if head.archived_revision < mark.revision <= head.revision:
            head.archived_revision = mark.revision
        upto = min(mark.trimmed_seq, head.archived_seq)
        if upto > head.trimmed_seq:
            head.trimmed_seq = upto
            state.has_trimmed = True
            # From the first message on: what an earlier trim had to leave in the window may have left it since.
            gone[context.ordinal] = list(_gaps(context.held_ranges(upto), upto))
        state.changes.touch(context)
    if gone:
        state.changes.trim(gone)
    for erased in command.erased:
        state.erasures.pop(erased, None)
    return Done()


def _gaps(held: Iterable[tuple[int, int]], upto: int) -> Iterable[tuple[int, int]]:
    """What of [1, upto] is in none of the ascending ranges."""
    begin = 1
    for first, last in held:
        if begin < first:
            yield begin, first - 1
        begin = last + 1
    if begin <= upto:
        yield begin, upto


def bring_back(state: ShardState, context: Context, restored: Iterable[Restored]) -> None:
    """Of messages that a command brought from the archive, keep those hot that the window holds now: it is read from the hot store."""
    trimmed = context.head.trimmed_seq
    if not trimmed:
        return
    held = {item.seq for item in context.window.items if item.kind == LIVE}
    for message in restored:
        if message.seq <= trimmed and message.seq in held:
            row = (rowid(context.ordinal, message.seq), message.body, message.info)
            state.changes.messages.append(row)
            state.changes.pending_bytes += len(message.body) + len(message.info)
