"""Planted bugs about answers: reads that are too early, writes whose outcome is told wrongly, memory that forgets."""

from support.planted import Mutant

REPLICA = "context_node.runtime.replica"
PROPOSALS = "context_node.runtime.proposals"
READ_BARRIERS = "context_node.runtime.read_barriers"
ENGINE = "context_node.runtime.engine"
CLUSTER = "context_node.runtime.cluster"
UPKEEP = "context_node.runtime.upkeep"

MUTANTS = (
    Mutant(
        "a leader answers reads without asking a majority",
        "§2 etcd #7331, ra PR #342; table row 15",
        ((REPLICA, "        if self.is_only_voter and self.group.is_leader:\n", "        if self.group.is_leader:\n"),),
    ),
    Mutant(
        "a follower answers reads from what it has",
        "table row 15; §5 pysyncobj stale reads",
        ((REPLICA, "        if self.is_only_voter and self.group.is_leader:\n", "        if True:\n"),),
    ),
    Mutant(
        "a read is answered before its index is applied",
        "§3 Reads",
        ((READ_BARRIERS, "            if index > applied:\n", "            if False:\n"),),
    ),
    Mutant(
        "the context of a read is used again",
        "§2 etcd #20418, #21399",
        ((READ_BARRIERS, "        self._count += 1\n", "        self._count = (self._count + 1) % 2\n"),),
    ),
    Mutant(
        "all reads that wait are answered by the first index that comes",
        "§2 etcd-io/raft #397",
        (
            (
                READ_BARRIERS,
                "            for reader in self._asked.pop(context, (0, []))[1]:\n",
                "            everybody = [reader for _, readers in self._asked.values() for reader in readers]\n"
                "            self._asked.clear()\n            for reader in everybody:\n",
            ),
        ),
    ),
    Mutant(
        "a joint configuration whose incoming half is one voter counts as alone",
        "§3 Membership; table row 18",
        (
            (
                REPLICA,
                "self.is_only_voter = not members.joint and members.voters == (self.group.replica_id,)",
                "self.is_only_voter = self.group.replica_id in members.voters and len(members.voters) <= 3 and members.joint",
            ),
        ),
    ),
    Mutant(
        "a write is told the reply of the entry that took its place",
        "P13",
        (
            (
                REPLICA,
                "        if proposal is not None and is_own and not proposal.reply.done():\n",
                "        if proposal is not None and not proposal.reply.done():\n",
            ),
        ),
    ),
    Mutant(
        "a proposal is recognized by its index alone",
        "P13; I5",
        ((REPLICA, "is_own = proposal is not None and proposal.term == term", "is_own = proposal is not None"),),
    ),
    Mutant(
        "a leader that steps down tells its writers that all is well",
        "P4",
        (
            (
                REPLICA,
                "            self._proposals.outlive(self.ticks)\n",
                "            for index, one in self._proposals._waiting.items():\n                if not one.reply.done():\n"
                "                    reply, _ = self.machine.apply(index, one.command, self._found(one.command))\n"
                "                    one.reply.set_result(reply)\n            self._proposals.outlive(self.ticks)\n",
            ),
        ),
    ),
    Mutant(
        "a write whose place another leader's entry took hears nothing",
        "P4, P13",
        ((PROPOSALS, "        _give_up(proposal)\n        del self._waiting[index]\n", "        del self._waiting[index]\n"),),
    ),
    Mutant(
        "a write outlives its leader's leadership for ever",
        "P4",
        ((REPLICA, "        self._proposals.tick(self.ticks, self.election_ticks)\n", ""),),
    ),
    Mutant(
        "a write is answered when it is in the leader's own log",
        "P4, H1; §5 raftos: acknowledged before committed",
        (
            (
                ENGINE,
                "                if ready.committed:\n",
                "                for waiting in list(replica._proposals._waiting.values()):\n"
                "                    if not waiting.reply.done() and type(waiting.command).__name__ == 'AppendMessages':\n"
                "                        found = replica._found(waiting.command)\n"
                "                        held = replica.machine.contexts.get(waiting.command.context_id)\n"
                "                        first = (held.last_seq if held is not None else 0) + 1\n"
                "                        from context_node.contexts.replies import Appended\n"
                "                        del found\n"
                "                        waiting.reply.set_result(_early(replica, waiting, first))\n"
                "                if ready.committed:\n",
            ),
            (
                ENGINE,
                "@dataclass(slots=True)\nclass EngineCounters:",
                "def _early(replica, waiting, first):\n"
                "    import copy\n    from context_node.contexts.machine import Machine\n"
                "    machine = copy.deepcopy(replica.machine)\n"
                "    reply, _ = machine.apply(replica.applied_index + 1, waiting.command, replica._found(waiting.command))\n"
                "    return reply\n\n\n@dataclass(slots=True)\nclass EngineCounters:",
            ),
        ),
    ),
    Mutant(
        "a write whose answer was lost is sent again",
        "ARCHITECTURE: ambiguous writes are never retried without a key",
        (
            (
                CLUSTER,
                "                raise outcome_unknown() from None\n",
                '                raise NotHere("try again") from None\n',
            ),
        ),
    ),
    Mutant(
        "the ids of stored messages are not looked for",
        "I15; H4",
        (
            (
                REPLICA,
                "        ids = [draft.id for draft in command.drafts if draft.id is not None] if is_append else ()\n",
                "        ids: tuple[str, ...] = ()\n",
            ),
        ),
    ),
    Mutant(
        "idempotency keys are not looked for",
        "I15; H4",
        ((REPLICA, "        if key is not None and key.key not in context.fresh_keys:\n", "        if False:\n"),),
    ),
    Mutant(
        "contexts that are not stored yet are dropped from memory",
        "I14",
        ((UPKEEP, "elif context_id not in dirty and context_id not in replica.followed:", "elif context_id not in replica.followed:"),),
    ),
    Mutant(
        "what was applied is forgotten once a flush began",
        "I14; §2 CockroachDB #36353",
        (
            (
                REPLICA,
                "        changes = state_changes(machine, self.applied_index, self.applied_term, self.conf_state)\n        self.store.flush(changes)\n",
                "        changes = state_changes(machine, self.applied_index, self.applied_term, self.conf_state)\n"
                "        if self.applied_index % 7:\n            self.store.flush(changes)\n",
            ),
        ),
    ),
    Mutant(
        "one replica applies what the others refuse",
        "I5; §2 CockroachDB #36353: the same entry, another effect",
        (
            (
                REPLICA,
                "        reply, event = self.machine.apply(index, command, self._found(command))\n",
                "        found = self._found(command) if self.group.is_leader else type(self._found(command))()\n"
                "        reply, event = self.machine.apply(index, command, found)\n",
            ),
        ),
    ),
)
