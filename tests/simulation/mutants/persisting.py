"""Planted bugs about what must be durable before something is said."""

from support.planted import Mutant

ENGINE = "context_node.runtime.engine"
HOLDINGS = "context_node.runtime.holdings"
UPKEEP = "context_node.runtime.upkeep"
LOG = "context_node.runtime.log_store"
LOG_FILE = "context_node.runtime.log_file"
REPLICA = "context_node.runtime.replica"

MUTANTS = (
    Mutant(
        "votes and acknowledgements leave before their record is durable",
        "P1, P2",
        (
            (
                ENGINE,
                "            if number <= replica.group.persisted_number:\n",
                "            if True:\n",
            ),
        ),
    ),
    Mutant(
        "an acknowledgement without entries does not wait for earlier ones",
        "P2; §2 yugabyte #32875",
        (
            (
                ENGINE,
                "number = ready.number if ready.log_record else replica.newest_record",
                "number = ready.number if ready.log_record else 0",
            ),
        ),
    ),
    Mutant(
        "whatever becomes durable lets all held messages go",
        "P1, P2",
        ((ENGINE, "while replica.held_messages and replica.held_messages[0][0] <= persisted:", "while replica.held_messages:"),),
    ),
    Mutant(
        "a batch counts as durable when it is handed to the disk",
        "P12, P3; table row 9",
        (
            (
                ENGINE,
                "        self.counters.commits += 1\n",
                "        self.counters.commits += 1\n        for replica, number in promises:\n            self._drain(replica, number)\n",
            ),
        ),
    ),
    Mutant(
        "a commit stands for records that were gathered after it began",
        "P12",
        (
            (
                ENGINE,
                "            self._drain(replica, number)\n        self._post()",
                "            self._drain(replica, replica.newest_record)\n        self._post()",
            ),
        ),
    ),
    Mutant(
        "a failed commit is taken for a good one",
        "P10; §2 CockroachDB #37216",
        (
            (
                ENGINE,
                "self._log.synced(error)",
                "self._log.synced(None)",
            ),
        ),
    ),
    Mutant(
        "a batch counts that was written and not synced",
        "P2; P12",
        (
            (
                ENGINE,
                "self._worker.sync(file, lambda _none, error: self._committed(promises, error))",
                "self._loop.call_soon(self._committed, promises, None)",
            ),
        ),
    ),
    Mutant(
        "half of a batch is not written",
        "P2; table row 3",
        ((ENGINE, "                self._log.append(batch)\n", "                self._log.append(batch[: (len(batch) + 1) // 2])\n"),),
    ),
    Mutant(
        "records of a replica that was replaced are written all the same",
        "P6",
        (
            (
                ENGINE,
                "        self._gathered = [(shard, record) for shard, record in self._gathered if shard != replica.shard]\n",
                "",
            ),
        ),
    ),
    Mutant(
        "the log is not synced",
        "P2; §2 Jepsen NATS 2.12.1",
        ((LOG_FILE, 'synchronous: Synchronous = "FULL"', 'synchronous: Synchronous = "OFF"'),),
    ),
    Mutant(
        "a truncation forgets the vote",
        "P7, I2",
        ((UPKEEP, "(status.term, status.vote, max(", "(status.term, 0, max("),),
    ),
    Mutant(
        "a truncation keeps the hard state that was there before",
        "P7; §2 raft-engine #288",
        (
            (
                LOG,
                "ShardRow(row.replica_id, row.generation, state, index, term, since, newest)",
                "ShardRow(row.replica_id, row.generation, row.hard_state, index, term, since, newest)",
            ),
        ),
    ),
    Mutant(
        "a truncation claims a commit index that is not durable",
        "I7",
        ((UPKEEP, "max(min(status.commit, status.persisted), index)", "max(status.commit + 50, index)"),),
    ),
    Mutant(
        "the log is truncated up to what is stored, not to what is durable",
        "P7, I16",
        (
            (
                UPKEEP,
                "        index, term = replica.durable_index, replica.durable_term\n",
                "        index, term = replica.stored_index, replica.stored_term\n",
            ),
        ),
    ),
    Mutant(
        "what was flushed during a checkpoint counts as checkpointed",
        "P7, I16",
        (
            (
                UPKEEP,
                "        result = await self._worker.run(replica.store.checkpoint)\n",
                "        result = await self._worker.run(replica.store.checkpoint)\n        stored = (replica.stored_index, replica.stored_term)\n",
            ),
        ),
    ),
    Mutant(
        "the log is truncated without a checkpoint",
        "P7, I16",
        (
            (
                UPKEEP,
                "        result = await self._worker.run(replica.store.checkpoint)\n",
                "        result = await self._worker.run(lambda: type('Faked', (), {'complete': True}))\n",
            ),
        ),
    ),
    Mutant(
        "the log is truncated after a checkpoint that was not complete",
        "P7, I16",
        (
            (
                UPKEEP,
                "        if result.complete:\n            replica.durable_index",
                "        if True:\n            replica.durable_index",
            ),
            (UPKEEP, "        return bool(result.complete)\n", "        return True\n"),
        ),
    ),
    Mutant(
        "a start does not read its vote",
        "table row 5, I2",
        ((HOLDINGS, "            vote=vote,\n", "            vote=0,\n"),),
    ),
    Mutant(
        "a start drops the entries that it found",
        "P9, I13; §5 pysyncobj: restart with wiped journal",
        ((HOLDINGS, "            records=found.records,\n", "            records=[],\n"),),
    ),
    Mutant(
        "the applied index is stored one entry behind its data",
        "§2 etcd v3.5 postmortem",
        (
            (
                REPLICA,
                "state_changes(machine, self.applied_index, self.applied_term, self.conf_state)",
                "state_changes(machine, max(self.stored_index, self.applied_index - 1), self.applied_term, self.conf_state)",
            ),
        ),
    ),
)
