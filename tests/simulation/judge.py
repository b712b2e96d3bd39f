"""The judge of a simulation: the invariants I1 to I16 and the persist-before-send rules, looked at wherever the shell acts.

Knows what stores, replicas and engines did, as `watching` tells it while a run lasts. Does not know the faults.
Invariant: it changes nothing of what it watches. Each `fail` names the rule; the run ends there.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import apsw

from context_node.contexts.commands import NoteArchived
from context_node.contexts.revisions import NEWEST
from context_node.contexts.shard_state import ShardState
from context_node.raft import ConfState, EntryKind, MessageKind, peek_message, unpack_log_record
from context_node.runtime.databases import wal_file
from context_node.runtime.log_store import LogStore
from context_node.runtime.replica import Replica
from context_node.runtime.shards import node_of
from simulation.durable import Change, DiskModel, changed, differences, recovered_model
from simulation.loop import BEGIN_S, OWNER, SimulatedLoop
from simulation.messages import fields_of
from simulation.network import SimulatedTransport


class Violated(AssertionError):
    """A rule does not hold. `rule` is its name."""

    def __init__(self, rule: str, sentence: str) -> None:
        super().__init__(f"{rule}: {sentence}")
        self.rule = rule
        self.sentence = sentence


class Judge:
    """See the module's docstring."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.violation: Violated | None = None
        self.noted: Callable[[ShardState, NoteArchived], None] = lambda _state, _command: None
        """Told of marks of the archive, whenever a replica has applied some."""
        self.marks: Counter[str] = Counter()
        """Rare situations, by how often they were reached."""
        self.tell: Callable[[str], None] | None = None
        """Hears what happens, for a person."""
        self.disks: dict[str, DiskModel] = {}
        self.leaders: dict[tuple[int, int], int] = {}
        self.applied: dict[tuple[int, int], tuple[int, int]] = {}
        self.committed: dict[int, tuple[int, int]] = {}
        """By shard the greatest index that any replica held committed, with its term."""
        self.newest: dict[int, dict[int, int]] = {}
        """By shard and term the greatest of that term."""
        self.members: dict[int, list[tuple[int, bytes]]] = {}
        self.removed: set[int] = set()
        self._pending: dict[LogStore, list[Any]] = {}
        self._sealed: dict[int, LogStore] = {}
        """Whose file is to be synced, by its address."""
        self._confirmed: dict[int, tuple[int, int]] = {}
        self.disk_of: Callable[[], Any] = lambda: None
        """The simulated disk of the process that runs now."""

    def fail(self, rule: str, sentence: str) -> None:
        """The first violation is the one that counts."""
        if self.violation is None:
            self.violation = Violated(rule, f"{sentence} (event {self.loop.events}, {self.loop.time():.3f} s)")

    def check(self, holds: bool, rule: str, sentence: str) -> None:
        if not holds:
            self.fail(rule, sentence)

    def mark(self, name: str, is_so: bool = True) -> None:
        if is_so:
            self.marks[name] += 1
            if self.tell is not None:
                self.tell(f"{self.loop.time() - BEGIN_S:9.4f} s  {self.loop.events:>7}  {name}")

    # --- disks --------------------------------------------------------------------------------------------------------

    def disk(self, log: LogStore) -> DiskModel:
        store = log.notes.identity.store_uuid
        found = self.disks.get(store)
        if found is None:
            owner = OWNER.get()
            found = self.disks[store] = DiskModel(owner.name if owner else "?")
        return found

    def durable_commit(self, life: Any, replica: Replica) -> int:
        """Up to where a replica would know after a power cut that entries are committed."""
        if life.node is None or life.node.log is None:
            return 0
        disk = self.disk(life.node.log)
        model = disk.shards.get(replica.shard)
        return max(0 if model is None else model.commit, disk.state_index.get(replica.store.path, 0))

    def newest_members(self, shard: int) -> int:
        """The entry of a shard's newest configuration."""
        known = self.members.get(shard)
        return known[-1][0] if known else 0

    def recovered(self, log: LogStore, shards: dict[int, Any]) -> None:
        """A start must find exactly what was committed; of a COMMIT that power was lost in, all or nothing (H1, P2)."""
        disk = self.disk(log)
        found = {shard: recovered_model(one) for shard, one in shards.items()}
        said = differences(disk.shards, found)
        if said and disk.in_flight:
            after = changed(disk.shards, disk.in_flight)
            if not differences(after, found):
                self.mark("a COMMIT that power was lost in was kept")
                self._commit(disk, disk.in_flight)
                said = []
        elif disk.in_flight:
            self.mark("a COMMIT that power was lost in was not kept")
        self.check(not said, "RECOVERY", f"{disk.name} finds another log than was made durable: {'; '.join(said)[:400]}")
        disk.in_flight = []
        for one in found.values():
            self.mark("a start found entries to apply again", bool(one.entries))

    def changing(self, log: LogStore, changes: Sequence[Change]) -> None:
        """What the next COMMIT of a log will make durable."""
        self._pending.setdefault(log, []).extend(changes)

    def opened(self, path: str, index: int) -> None:
        """A state database was opened, and is so far: at least as far as it ever was durable (H1)."""
        disk = self._state_disk()
        if disk is not None:
            known = disk.state_index.get(path, 0)
            self.check(index >= known, "H1", f"{path} on {disk.name} is at {index}, and was durable to {known}")
            disk.state_index[path] = index

    def carried_over(self, path: str, index: int) -> None:
        """A checkpoint was complete: the database is durable so far."""
        disk = self._state_disk()
        if disk is not None:
            disk.state_index[path] = max(index, disk.state_index.get(path, 0))

    def _state_disk(self) -> DiskModel | None:
        owner = OWNER.get()
        return None if owner is None else next((disk for disk in reversed(self.disks.values()) if disk.name == owner.name), None)

    def sealed(self, original: Callable[[LogStore], int], log: LogStore) -> int:
        """From here on what was written may outlive a loss of power."""
        changes, self._pending[log] = self._pending.get(log, []), []
        self.disk(log).in_flight = changes
        for change in changes:
            if change[0] == "install":
                self._check_install(log, change)
        file = original(log)
        self._sealed[file] = log
        return file

    def synced(self, original: Callable[[int], None], file: int) -> None:
        """And from here on it must."""
        original(file)
        log = self._sealed.pop(file, None)
        if log is not None and _is_at(log, file):
            disk = self.disk(log)
            changes, disk.in_flight = disk.in_flight, []
            self._commit(disk, changes)

    def _commit(self, disk: DiskModel, changes: Sequence[Any]) -> None:
        before, disk.shards = disk.shards, changed(disk.shards, changes)
        for change in changes:
            shard = change[1]
            old, new = before.get(shard), disk.shards.get(shard)
            if new is None:
                continue
            if old is not None and old.replica_id == new.replica_id:
                self.check(
                    new.term >= old.term, "I2", f"the durable term of shard {shard} on {disk.name} went back: {old.term}, {new.term}"
                )
            # A record can be followed by one of a later term in the same COMMIT: each of them has become durable.
            state = unpack_log_record(change[2])[0] if change[0] == "append" else None
            for term, vote in {(new.term, new.vote), (state[0], state[1]) if state is not None else (0, 0)}:
                if vote:
                    known = disk.votes.setdefault((new.replica_id, term), vote)
                    self.check(known == vote, "I2", f"{disk.name} voted twice in term {term} of shard {shard}: {known}, {vote}")
            if not new.vote and old is not None and old.replica_id == new.replica_id and old.term == new.term and old.vote:
                self.fail("I2", f"{disk.name} forgot its vote for {old.vote} in term {new.term} of shard {shard}")
            if change[0] == "append":
                self._check_append(disk, shard, old, new)
            elif change[0] == "truncate":
                self._check_truncation(disk, shard, new, change[2])

    def _check_append(self, disk: DiskModel, shard: int, old: Any, new: Any) -> None:
        committed = self.committed.get(shard)
        if old is None or committed is None or old.replica_id != new.replica_id:
            return
        index, term = committed
        if old.term_at(index) == term and new.base < index:
            self.check(new.term_at(index) == term, "I13", f"{disk.name} dropped entry {index} of shard {shard}, which is committed")
        lost = old.last > new.last or any(new.entries.get(at, entry) != entry for at, entry in old.entries.items())
        self.mark("a follower's conflicting entries were replaced", lost)

    def _check_truncation(self, disk: DiskModel, shard: int, new: Any, index: int) -> None:
        state = disk.state_index.get(_state_path(shard, new.generation))
        if state is not None:
            self.check(
                state >= index, "I16", f"{disk.name} dropped the log of shard {shard} up to {index}, its state is durable to {state}"
            )
        self.mark("a log was truncated")

    def removing(self, path: str) -> None:
        """P6, the other way round: as long as the log names a state, its files are there."""
        disk = self._state_disk()
        if disk is not None:
            named = {_state_path(shard, model.generation) for shard, model in disk.shards.items()}
            self.check(path not in named, "P6", f"{path} on {disk.name} goes before its log has durably forgotten it")
        self.mark("the files of a replica went")

    def _check_install(self, log: LogStore, change: Any) -> None:
        disk, generation = self.disk_of(), change[3]
        if disk is None:
            return
        name = next((name for name in disk.names if generation in name and name.endswith(".db")), None)
        inode = None if name is None else disk.durable_names.get(name)
        is_whole = inode is not None and not inode.pending and inode is disk.names[name]
        self.check(is_whole, "P6", f"{log.path} names the state {generation} before that is durable")
        self.mark("a snapshot was installed", change[5] > 1)

    # --- what is sent -------------------------------------------------------------------------------------------------

    def sent(self, source: SimulatedTransport, messages: Sequence[tuple[int, bytes]]) -> None:
        """P1 and P2, from the outside: what a message promises is on its sender's disk."""
        disk = self.disks.get(source.identity.store)
        if disk is None:
            return
        for shard, message in messages:
            kind, sender, to, term = peek_message(message)
            if kind == MessageKind.REQUEST_VOTE:
                known = disk.votes.get((sender, term))
                self.check(
                    known == sender, "P1", f"{disk.name} asks for votes in term {term} of shard {shard}; durable is a vote for {known}"
                )
                self.mark("an election")
            elif kind == MessageKind.REQUEST_VOTE_RESPONSE:
                if not fields_of(message).get("reject"):
                    self._check_vote(disk, shard, sender, to, term)
                else:
                    self.mark("a vote was refused")
            elif kind == MessageKind.APPEND_RESPONSE:
                self._check_append_response(disk, shard, message, sender, term)
            elif kind == MessageKind.SNAPSHOT:
                self.mark("a snapshot was announced")
            elif kind == MessageKind.TIMEOUT_NOW:
                self.mark("a leadership was handed over")
            elif kind == MessageKind.READ_INDEX:
                self.mark("a follower asked for a read index")

    def _check_vote(self, disk: DiskModel, shard: int, voter: int, choice: int, term: int) -> None:
        """A vote is durable, or so is a later term: who is beyond a term never votes in it again."""
        known, model = disk.votes.get((voter, term)), disk.shards.get(shard)
        is_beyond = known is None and model is not None and model.replica_id == voter and model.term > term
        self.mark("a vote was overtaken by the next term before it was durable", is_beyond)
        self.check(
            known == choice or is_beyond, "P1", f"{disk.name} votes for {choice} in term {term} of shard {shard}; durable is {known}"
        )

    def _check_append_response(self, disk: DiskModel, shard: int, message: bytes, sender: int, term: int) -> None:
        fields = fields_of(message)
        model = disk.shards.get(shard)
        if fields.get("reject"):
            self.mark("an append was refused")
            return
        index = fields.get("index", 0)
        if model is None or model.replica_id != sender:
            self.check(model is not None, "P2", f"{disk.name} acknowledges entry {index} of shard {shard}, which it does not hold")
            return
        # What was appended and then replaced in a later term, both with one COMMIT, was true before that term: as if it had been under way
        # for long. Who voted in the later term had it by then, so it is no promise that is broken.
        is_beyond = model.term > term
        self.mark("an acknowledgement was overtaken by the next term before it was durable", is_beyond and model.last < index)
        is_held = model.last >= index or is_beyond
        self.check(is_held, "P2", f"{disk.name} acknowledges entry {index} of shard {shard}; durable are {model.last}")
        self.check(model.term >= term, "P2", f"{disk.name} acknowledges in term {term} of shard {shard}; durable is {model.term}")

    def received(self, node: int, replica: Replica, message: bytes, is_taken: bool) -> None:
        """P11: a replica hears what is said to itself, by replicas of the node that sends it."""
        _, sender, to, _ = peek_message(message)
        is_meant = node_of(sender) == node and to == replica.group.replica_id
        self.mark("a message for a replica of another time was dropped", not is_meant and not is_taken)
        self.check(
            is_meant or not is_taken,
            "P11",
            f"replica {replica.group.replica_id} of shard {replica.shard} hears from node {node} what {sender} says to {to}",
        )

    # --- groups -------------------------------------------------------------------------------------------------------

    def drained(self, replica: Replica, members_before: bytes) -> None:
        """After every turn of a group. What it committed counted under the members before the turn or under those after it."""
        group = replica.group
        if group.poisoned or replica.failure is not None:
            return
        shard, replica_id = replica.shard, group.replica_id
        commit, applied, last = group.commit, group.applied_index, group.last_index
        seen = replica.__dict__.get("_judged", (0, 0, 0))
        if seen == (commit, applied, last) and not group.is_leader:
            return
        replica.__dict__["_judged"] = (commit, applied, last)
        self.check(commit >= seen[0] and applied >= seen[1], "I10", f"commit or applied of replica {replica_id} of shard {shard} went back")
        self.check(applied <= commit <= last, "I7", f"replica {replica_id} of shard {shard}: {applied} <= {commit} <= {last} does not hold")
        if group.is_leader:
            self._check_leader(replica, shard, replica_id, group.term)
        if commit > self.committed.get(shard, (0, 0))[0]:
            self._check_commit(replica, shard, commit, members_before)

    def _check_leader(self, replica: Replica, shard: int, replica_id: int, term: int) -> None:
        known = self.leaders.get((shard, term))
        if known == replica_id:
            return
        self.leaders[shard, term] = replica_id
        self.check(known is None, "I1", f"shard {shard} has two leaders in term {term}: {known} and {replica_id}")
        self.check(replica_id not in self.removed, "P11", f"replica {replica_id} of shard {shard}, whose disk was lost, leads")
        self.mark("a leader was elected")
        # One that is told of its votes late may lead a term that is over: it has what earlier terms committed, and nothing of later ones.
        index, old_term = max(((at, of) for of, at in self.newest.get(shard, {}).items() if of < term), default=(0, 0))
        if index > replica.group.status().first_index:
            held = replica.group.term_at(index)
            self.check(held == old_term, "I4", f"the leader of term {term} of shard {shard} lacks committed entry {index}")

    def _check_commit(self, replica: Replica, shard: int, commit: int, members_before: bytes) -> None:
        """I8, I9: what counts as committed is durable on a majority of the members in force."""
        term = replica.group.term_at(commit)
        before = self.committed.get(shard)
        if term is None:
            return
        self.committed[shard] = (commit, term)
        self.newest.setdefault(shard, {})[term] = commit
        if before is None and commit <= 1:
            return
        holding = {
            model.replica_id
            for disk in self.disks.values()
            if (model := disk.shards.get(shard)) is not None and (model.term_at(commit) == term or model.base >= commit)
        }
        members = ConfState.decode(members_before)
        self.check(
            _is_majority(members, holding) or _is_majority(ConfState.decode(replica.conf_state), holding),
            "I9",
            f"entry {commit} of shard {shard} counts as committed and is durable on {sorted(holding)} only, of {members}",
        )
        self.mark("committed by a joint configuration", bool(members.voters_outgoing))

    def applying(self, replica: Replica, committed: Sequence[tuple[int, int, int, bytes]]) -> None:
        expected = replica.applied_index + 1
        for index, term, kind, data in committed:
            self.check(index == expected, "I5", f"shard {replica.shard} applies {index} after {expected - 1}")
            expected = index + 1
            entry = (term, crc32(data, kind))
            known = self.applied.setdefault((replica.shard, index), entry)
            self.check(known == entry, "I5", f"entry {index} of shard {replica.shard} is not the same everywhere")
            self.mark("a leader's empty entry was applied", not data and kind == EntryKind.NORMAL)

    def took_members(self, replica: Replica) -> None:
        """I11: the configuration at an index is the same everywhere, and each shares a majority with the one before."""
        shard, index = replica.shard, replica.applied_index + 1
        known = self.members.setdefault(shard, [])
        place = next((place for place, (at, _) in enumerate(known) if at >= index), len(known))
        if place < len(known) and known[place][0] == index:
            self.check(known[place][1] == replica.conf_state, "I11", f"shard {shard} has two configurations at entry {index}")
            return
        known.insert(place, (index, replica.conf_state))
        if place:
            before, after = ConfState.decode(known[place - 1][1]), ConfState.decode(replica.conf_state)
            is_safe = bool(before.voters_outgoing or after.voters_outgoing) or len(set(before.voters) ^ set(after.voters)) <= 1
            self.check(is_safe, "I11", f"shard {shard} goes from {before} to {after} in one step")
            self.mark("a joint configuration was entered", bool(after.voters_outgoing))
            self.mark("a learner was added", len(after.learners) > len(before.learners))
            self.mark("members changed")

    def note_end(self, life: Any, error: BaseException) -> None:
        """A node ended by itself. Only a disk that failed it is a reason (P10), or a feature level that it does not understand."""
        if life.revision < NEWEST and "feature level" in str(error):
            self.mark("a node that went back to the version before was turned away")
            life.revision = NEWEST
            return
        self.check(bool(life.excuse), "START" if not life.is_ready else "END", f"{life.name} ended by itself: {error}")
        self.mark("a node ended because its disk failed")

    def note_newer(self, life: Any, error: BaseException) -> None:
        """A replica met a command that its node does not understand. That may happen to a node that went back and has not been heard of
        yet, never to one whose revision the cluster knows."""
        self.check(not life.is_registered, "LEVEL", f"{life.name} is a member of revision {life.revision}: {error}")
        self.mark("a node that went back met a newer command")


def _state_path(shard: int, generation: str) -> str:
    return f"data/state/{shard:05d}-{generation}.db"


def _is_at(log: LogStore, file: int) -> bool:
    """Whether it is this log's file still: where one was closed another may have been opened at the same address."""
    try:
        return wal_file(log._file.database) == file
    except apsw.Error:
        return False


def _is_majority(members: ConfState, holding: set[int]) -> bool:
    halves = [voters for voters in (members.voters, members.voters_outgoing) if voters]
    return all(2 * sum(voter in holding for voter in voters) > len(voters) for voters in halves)
