"""Planted bugs about snapshots and about replicas that come and go."""

from support.planted import Mutant

HOLDINGS = "context_node.runtime.holdings"
MOVING = "context_node.runtime.moving"
SNAPSHOTS = "context_node.runtime.snapshots"
REPLICA = "context_node.runtime.replica"

MUTANTS = (
    Mutant(
        "a received snapshot is not synced before the log names it",
        "P6",
        ((SNAPSHOTS, "        disk.sync_file(self._partial)\n", ""),),
    ),
    Mutant(
        "a received snapshot's name is not synced before the log names it",
        "P6",
        ((SNAPSHOTS, "        disk.sync_directory(os.path.dirname(self.path))\n", ""),),
    ),
    Mutant(
        "a snapshot counts as installed before the log names it durably",
        "P6",
        (
            (
                HOLDINGS,
                "        # Comes after the commit that holds the switch.\n        await engine.log_job(lambda log: None)\n",
                "        # Comes after the commit that holds the switch.\n",
            ),
        ),
    ),
    Mutant(
        "a snapshot makes a replica forget its vote",
        "I2",
        (
            (
                HOLDINGS,
                "hard_state = HardState(status.term, status.vote, manifest.index)",
                "hard_state = HardState(status.term, 0, manifest.index)",
            ),
        ),
    ),
    Mutant(
        "a snapshot brings a replica's term back to its own",
        "I2",
        (
            (
                HOLDINGS,
                "                hard_state = HardState(status.term, status.vote, manifest.index)\n",
                "                hard_state = HardState(manifest.term, 0, manifest.index)\n",
            ),
        ),
    ),
    Mutant(
        "a snapshot says that it holds more than it does",
        "§2 rqlite #2747: snapshot index adopted without its data",
        (
            (SNAPSHOTS, "    await replica.stored()\n\n    def copy", "    def copy"),
            (
                SNAPSHOTS,
                "return Manifest(replica.shard, applied.index, applied.term,",
                "return Manifest(replica.shard, replica.applied_index, replica.applied_term,",
            ),
            (
                SNAPSHOTS,
                "        if (applied.index, applied.term, applied.conf_state) != (manifest.index, manifest.term, manifest.conf_state):\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "a snapshot whose announcement was lost is not announced again",
        "liveness; etcd's contract of ReportSnapshot",
        ((REPLICA, "        if self._announced:\n            self._announce_again()\n", ""),),
    ),
    Mutant(
        "a new replica is counted on before the log names it durably",
        "P6",
        (
            (
                HOLDINGS,
                "        engine.with_log(lambda log: log.install(shard, replica_id, generation, hard_state, 0, 0))\n        await engine.log_job(lambda log: None)\n",
                "        engine.with_log(lambda log: log.install(shard, replica_id, generation, hard_state, 0, 0))\n",
            ),
        ),
    ),
    Mutant(
        "the files of a replica go before the log has forgotten it",
        "P6",
        (
            (
                HOLDINGS,
                "        with suppress(StorageError):\n            await engine.log_job(lambda log: None)\n        await self._close_store(replica)\n",
                "        await self._close_store(replica)\n",
            ),
        ),
    ),
    Mutant(
        "a replica is dropped on the word of a leader that was deposed long ago",
        "P11: stale terms never touch anything",
        (
            (
                MOVING,
                "            or led.term < (replica.applied_term if replica.group.poisoned else replica.group.term)\n"
                "            or led.applied < replica.applied_index\n",
                "",
            ),
        ),
    ),
    Mutant(
        "replicas of a node get the same id again and again",
        "table row 32: ids are never used twice",
        (
            (
                MOVING,
                "        replica_id = replica_id_on(node, self._random_bytes(5))\n",
                '        replica_id = replica_id_on(node, b"again")\n',
            ),
        ),
    ),
)
