"""One replica of one shard: its Raft group, its state machine, its database, and who waits for what.

Knows the order of things for one shard: committed entries are applied in order, each with what it names loaded first, and only then
answered (P4). Knows neither the log store nor other shards: the engine drives it. Invariant: what `machine.changes` holds is exactly what
was applied after `stored_index`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from context_node.contexts.commands import (
    AppendMessages,
    Command,
    Compare,
    NoteArchived,
    PatchMetadataCommand,
    PutConfig,
    decode_command,
    encode_command,
)
from context_node.contexts.context import Context, IdRow, read_context
from context_node.contexts.machine import NOTHING_FOUND, Event, Found, Machine
from context_node.contexts.refusals import Overloaded, Unavailable
from context_node.contexts.replies import Reply
from context_node.contexts.revisions import NEWEST, NewerRevision, revision_of
from context_node.raft import ConfState, EntryKind, Group, NotLeader, ProposalDropped, ReplicaPanicked, Role
from context_node.runtime.databases import StorageError
from context_node.runtime.not_here import NotHere
from context_node.runtime.proposals import Proposal, Proposals
from context_node.runtime.read_barriers import ReadBarriers
from context_node.runtime.shards import node_of
from context_node.runtime.state_store import StateStore
from context_node.runtime.storing import key_row, state_changes

SNAPSHOT_RETRY_TICKS = 50
"""A snapshot that was announced, and that nobody asked for or said a word of for so long, is announced again: the word of it was lost, and
Raft itself would wait for ever."""

KEPT_ENTRIES = 256
"""So many entries stay in the log of a group with several members, so that whoever leads next can serve those a little behind."""


class Replica:
    """See the module's docstring. `on_work` tells the engine that the group has something to do; `on_event` tells followers of contexts;
    `on_storage_error` tells the node that a flush asked for by a read failed."""

    def __init__(
        self,
        shard: int,
        group: Group,
        machine: Machine,
        store: StateStore,
        *,
        applied_index: int,
        applied_term: int,
        conf_state: bytes,
        loop: asyncio.AbstractEventLoop,
        on_work: Callable[["Replica"], None],
        on_event: Callable[["Replica", Event], None],
        on_storage_error: Callable[[StorageError], None],
    ) -> None:
        self.shard = shard
        self.group = group
        self.machine = machine
        self.store = store
        self.applied_index = applied_index
        self.applied_term = applied_term
        self.stored_index = applied_index
        self.stored_term = applied_term
        self.durable_index = applied_index
        self.durable_term = applied_term
        self._take_members(conf_state)
        self.members_index = applied_index
        """The entry of the newest configuration, as far as it was applied in this life. It counts after a crash only if it is known to be
        committed by then, so that upkeep makes it durable soon."""
        self.is_queued = False
        # Held while the database's files are scrubbed: a flush would find it locked.
        self.storing = asyncio.Lock()
        self.dirty_since: float | None = None
        self.queued_bytes_max = 8 << 20
        self.failure: str | None = None
        self.write_refusal: str | None = None
        self.is_behind = False
        self.revision = NEWEST
        """The newest revision of commands that this node understands."""
        self.level: Callable[[], int] = lambda: NEWEST
        """The feature level: no command of a later revision may be proposed."""
        self.on_compared: Callable[[str], None] = lambda _mark: None
        """Called right behind a `Compare` entry, when its index is the applied one."""
        self.followed: dict[str, list[Any]] = {}
        self._loop = loop
        self._on_work = on_work
        self._on_event = on_event
        self._on_storage_error = on_storage_error
        self._proposals = Proposals()
        self.reads = ReadBarriers(group)
        self._compared: str | None = None
        self.ticks = 0
        """Steps of time that this replica was given."""
        self.election_ticks = 10
        """So many without a leader begin an election."""
        self._announced: dict[int, int] = {}
        """By member the tick at which it was told of a snapshot, or last asked for a part of it."""
        self.held_messages: list[tuple[int, list[tuple[int, bytes]]]] = []
        """By the number of the Ready that must be durable before they leave, in order."""
        self.newest_record = 0
        """The number of the newest Ready that had something to keep."""
        self.is_installing = False
        self.is_resting = False
        """Whether nobody gives the group time, since it has nothing to do (`runtime/quiescence.py`)."""
        self.idle_ticks = 0
        """Ticks since the group last had something to keep, to apply or to answer."""

    # --- asking ------------------------------------------------------------------------------------------------------

    def propose(self, command: Command, reply: "asyncio.Future[Reply] | None" = None) -> "asyncio.Future[Reply]":
        """Put a command into the log. The future gives the reply once the entry is durable, committed and applied (H3);
        the caller may bring its own.

        Raises `Overloaded` if too much is under way and `Unavailable` if this replica does not lead.
        """
        if self.write_refusal is not None:
            raise Unavailable(self.write_refusal, retry_after_s=1)
        if self.is_behind:
            raise Overloaded("The disk does not keep up with what is written; try again shortly.", retry_after_s=1)
        if (revision := revision_of(command)) > self.level():
            raise AssertionError(f"{type(command).__name__} is of revision {revision}, above the feature level {self.level()}")
        data = encode_command(command)
        if self.queued_bytes + len(data) > self.queued_bytes_max and self._proposals.queued_bytes:
            raise Overloaded("Too many writes are under way in this shard; try again shortly.", retry_after_s=1)
        try:
            index, term = self.group.propose(data)
        except NotLeader:
            raise self._not_here() from None
        except ProposalDropped:
            if self.has_peers and self.group.status().transferee:
                raise self._not_here() from None
            raise Overloaded("Too many writes are under way in this shard; try again shortly.", retry_after_s=1) from None
        except ReplicaPanicked as error:
            self.stop(error)
            raise Unavailable(str(self.failure)) from None
        if reply is None:
            reply = self._loop.create_future()
        self._proposals.add(index, Proposal(term, command, len(data), reply))
        self._on_work(self)
        return reply

    def _not_here(self) -> Unavailable:
        """Nobody leads this shard here now. Where there are others, whoever leads next may be asked at once."""
        text = "This shard has no leader here now; try again shortly."
        leader = self.group.leader_id
        known = node_of(leader) if leader != self.group.replica_id else 0
        return NotHere(text, retry_after_s=1, leader=known) if self.has_peers else Unavailable(text, retry_after_s=1)

    def _take_members(self, conf_state: bytes) -> None:
        self.conf_state = conf_state
        members = ConfState.decode(conf_state)
        self.members = members
        self.is_only_voter = not members.joint and members.voters == (self.group.replica_id,)
        self.has_peers = members.members != {self.group.replica_id}
        """Also true of a replica that has yet to learn whom it belongs to."""

    async def read_barrier(self) -> None:
        """Return once this replica has applied all that was acknowledged before the call (H5).

        A sole leader has: it applies each entry in the turn that commits it. Others ask for a read index; reads of one turn share it.
        """
        if self.failure is not None:
            raise Unavailable(self.failure)
        if self.is_only_voter and self.group.is_leader:
            return
        answer: asyncio.Future[None] = self._loop.create_future()
        self.reads.add(answer, self.ticks)
        self._on_work(self)
        await answer

    # --- the engine's part -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One step of time: for Raft, and for reads whose question or answer was lost."""
        self.ticks += 1
        self.idle_ticks += 1
        self._proposals.tick(self.ticks, self.election_ticks)
        if self.failure is not None or self.is_installing:
            return
        self.reads.tick(self.ticks)
        if self._announced:
            self._announce_again()
        if self.group.tick() or self.reads.has_unasked:
            self._on_work(self)

    def note_snapshot(self, members: Iterable[int] | None = None) -> None:
        """These members were told of a snapshot; without any: whoever was told of one has asked for a part of it."""
        for member in self._announced if members is None else members:
            self._announced[member] = self.ticks

    def _announce_again(self) -> None:
        if not self.group.is_leader:
            self._announced.clear()
            return
        for member, since in list(self._announced.items()):
            if self.ticks - since >= SNAPSHOT_RETRY_TICKS:
                del self._announced[member]
                # Does nothing if the member has got it meanwhile.
                self.group.report_snapshot(member, False)
                self._on_work(self)

    def note_role(self, role: int) -> None:
        """Raft says what this replica is now."""
        if role != Role.LEADER:
            self._proposals.outlive(self.ticks)

    def apply(self, committed: Sequence[tuple[int, int, int, bytes]], now: float) -> None:
        """Apply committed entries in order, and answer those who proposed them here."""
        for index, term, kind, data in committed:
            proposal = self._proposals.at(index)
            if kind != EntryKind.NORMAL:
                self._take_members(self.group.apply_conf_change(index))
                self.members_index = index
            elif data:
                self._apply_command(index, term, data, proposal)
            self.applied_index, self.applied_term = index, term
            if self._compared is not None:
                mark, self._compared = self._compared, None
                self.on_compared(mark)
            if proposal is not None:
                self._proposals.done(index, proposal)
        if committed:
            self.group.applied(self.applied_index)
            self.reads.let_go(self.applied_index)
            if self.dirty_since is None:
                self.dirty_since = now

    def _apply_command(self, index: int, term: int, data: bytes, proposal: Proposal | None) -> None:
        is_own = proposal is not None and proposal.term == term
        command = proposal.command if proposal is not None and is_own else self._understood(data)
        reply, event = self.machine.apply(index, command, self._found(command))
        if event is not None:
            self._on_event(self, event)
        elif type(command) is PutConfig or type(command) is PatchMetadataCommand:
            self._on_event(self, Event("configured", command.context_id))
        elif type(command) is Compare:
            self._compared = command.mark
        if proposal is not None and is_own and not proposal.reply.done():
            proposal.reply.set_result(reply)

    def _understood(self, data: bytes) -> Command:
        """The command in an entry. Raises `NewerRevision`: it must neither be skipped nor guessed."""
        try:
            command = decode_command(data)
        except msgspec.ValidationError as error:
            raise NewerRevision(f"an entry holds a command that this version does not know: {error}") from error
        if (revision := revision_of(command)) > self.revision:
            raise NewerRevision(f"an entry holds a command of revision {revision}, and this node understands {self.revision}")
        return command

    def refuse_writes(self, reason: str) -> None:
        """The node cannot keep what it would acknowledge. Writes under way have an unknown outcome (P10); what is applied can be read."""
        self.write_refusal = reason
        self._proposals.give_up()

    def stop(self, error: Exception) -> None:
        """A defect stops this replica, and no other."""
        if isinstance(error, NewerRevision):
            self.fail(f"Shard {self.shard} stopped: {error}. Start this node with a newer version.")
        else:
            self.fail(f"Shard {self.shard} stopped after an internal fault; see the node's log.")
        self._loop.call_exception_handler({"message": f"shard {self.shard} stopped", "exception": error})

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """For whoever has the group do something outside of a turn of the engine: a defect that shows then stops this replica only. Raises
        `Unavailable`."""
        try:
            yield
        except ReplicaPanicked as error:
            self.stop(error)
            raise Unavailable(str(self.failure)) from None

    def fail(self, reason: str) -> None:
        """Stop answering at all."""
        self.refuse_writes(reason)
        self.failure = reason
        for followers in self.followed.values():
            for follower in followers:
                follower.stop()
        self.reads.fail(reason)

    @property
    def leads(self) -> bool:
        """Whether this replica works and leads its group. What a group says of itself that ended by a defect is an exception."""
        return self.failure is None and not self.group.poisoned and self.group.is_leader

    @property
    def log_bytes(self) -> int:
        """Bytes of its log in memory, as far as its group can still tell."""
        return 0 if self.group.poisoned else self.group.log_bytes

    @property
    def is_caught_up(self) -> bool:
        """Whether this replica leads and has applied all of its log, as it must before it serves alone."""
        return self.leads and self.applied_index == self.group.last_index

    def truncation_index(self, log_bytes_max: int, upto: int | None = None) -> int:
        """Up to where the log may go: what is durable (or `upto`), but not what members still need that are close behind or have just been
        given a snapshot; beyond `log_bytes_max` they get another one instead."""
        durable = self.durable_index if upto is None else upto
        if not self.has_peers:
            return durable
        status = self.group.status()
        keep_from = durable - KEPT_ENTRIES
        for member in status.progress:
            if member.replica_id != status.replica_id and member.recent_active:
                keep_from = min(keep_from, max(member.match_index, member.pending_snapshot))
        index = durable if status.log_bytes > log_bytes_max else keep_from
        return max(index, status.first_index - 1)

    def would_shrink(self, log_bytes_max: int, upto: int) -> bool:
        """Whether a good part of the log could go once it is durable up to `upto`."""
        status = self.group.status()
        held = status.last_index - status.first_index + 1
        return 4 * (self.truncation_index(log_bytes_max, upto) - status.first_index + 1) >= held

    @property
    def is_at_peace(self) -> bool:
        """Whether nobody waits for anything here."""
        return not (self._proposals or self.reads or self._announced or self.held_messages or self.is_queued) and not (
            self.is_installing or self.failure is not None
        )

    @property
    def is_waited_for(self) -> bool:
        """Whether a write or a read waits here, for an answer or for having waited long enough."""
        return bool(self._proposals or self.reads)

    @property
    def in_flight(self) -> int:
        """Proposals that wait for their reply."""
        return len(self._proposals)

    @property
    def queued_bytes(self) -> int:
        """Bytes of those that were proposed while this replica led and leads."""
        return self._proposals.queued_bytes

    # --- loading -----------------------------------------------------------------------------------------------------

    def context(self, context_id: str) -> Context | None:
        """The context, from memory or read from the database; None if there is none."""
        context = self.machine.contexts.get(context_id)
        if context is None:
            row = self.store.context_by_id(context_id)
            if row is None or row.ordinal in self.machine.changes.purged:
                return None
            store = self.store
            context = read_context(context_id, row.ordinal, row.record, lambda ranges: store.messages(row.ordinal, ranges))
            self.machine.contexts[context_id] = context
        context.is_recent = True
        return context

    def _found(self, command: Any) -> Found:
        """What the database knows of a command's key and message ids; also loads the context that it names."""
        is_append = type(command) is AppendMessages
        context_id = command.context_id if is_append else getattr(command, "context_id", None)
        if context_id is None:
            for mark in command.archived if type(command) is NoteArchived else ():
                self.context(mark.context_id)
            return NOTHING_FOUND
        context = self.context(context_id)
        if context is None:
            return NOTHING_FOUND
        key = command.key if is_append else getattr(command, "key", None)
        ids = [draft.id for draft in command.drafts if draft.id is not None] if is_append else ()
        if key is None and not ids:
            return NOTHING_FOUND
        known = None
        if key is not None and key.key not in context.fresh_keys:
            known = key_row(self.store.key(context.ordinal, key.key))
        id_rows = {row[0]: IdRow(*row[1:]) for row in self.store.message_ids(context.ordinal, ids)} if ids else {}
        return Found(known, id_rows)

    # --- storing -----------------------------------------------------------------------------------------------------

    @property
    def has_changes(self) -> bool:
        return self.stored_index < self.applied_index

    async def stored(self) -> None:
        """Flush, once nothing stands in the way: what is applied can be read from the database then. Raises `Unavailable`."""
        async with self.storing:
            if self.failure is not None:
                raise Unavailable(self.failure)
            try:
                self.flush()
            except StorageError as error:
                self._on_storage_error(error)
                raise Unavailable("The disk does not take what this answer needs; try again later.", retry_after_s=1) from error

    def flush(self) -> None:
        """Write what was applied to the state database, in one transaction with the applied index. No fsync: the log has it."""
        if not self.has_changes:
            return
        machine = self.machine
        changes = state_changes(machine, self.applied_index, self.applied_term, self.conf_state)
        self.store.flush(changes)
        for context in machine.changes.contexts.values():
            context.fresh_ids.clear()
            context.fresh_keys.clear()
            context.tail.clear()
        machine.changes = type(machine.changes)()
        self.stored_index, self.stored_term = self.applied_index, self.applied_term
        self.dirty_since = None
