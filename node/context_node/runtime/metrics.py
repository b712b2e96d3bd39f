"""What the runtime counts, as Prometheus reads it.

Knows the counters of a `Node` and their names outside. Invariant: reading them changes nothing and touches no disk, so a scrape costs the
same however much the node holds.
"""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from context_node.runtime.node import Node


class NodeMetrics(Collector):
    """Counters and gauges of one node. While its engine is away (starting, a full disk) only what is always there is told."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        node = self._node
        yield gauge("ready", "1 while the node serves.", int(node.state.is_ready))
        yield counter("start_overs", "Recoveries after a full disk, without a restart of the process.", node.restarts)
        engine, upkeep = node.engine, node.upkeep
        if engine is None or upkeep is None:
            return
        counters, replicas = engine.counters, list(engine.replicas.values())
        yield counter("log_commits", "Commits of the log, one fsync each.", counters.commits)
        yield counter("log_records", "Records in those commits; by commits: how well an fsync is shared.", counters.batch_records)
        yield counter("log_bytes", "Bytes of those records.", counters.batch_bytes)
        yield counter("entries_applied", "Log entries applied.", counters.applied)
        yield gauge("log_memory_bytes", "Log kept in memory, all shards.", sum(replica.log_bytes for replica in replicas))
        yield gauge("shards", "Replicas on this node, the system group included.", len(replicas))
        yield gauge("shards_stopped", "Replicas that stopped after a fault; see the log.", sum(one.failure is not None for one in replicas))
        level = node.cluster.membership.level() if node.cluster is not None else node.options.revision
        yield gauge("feature_level", "Revision of the state machine up to which commands are used.", level)
        is_slow = node.cluster is not None and node.cluster.has_slow_disk
        yield gauge("commit_mean_seconds", "Running mean of what a COMMIT of the log takes.", engine.disk.mean_s)
        yield gauge("disk_slow", "1 while this node's disk is slow and what it leads is handed over.", int(is_slow))
        yield gauge("shards_led", "Groups that this node leads.", sum(one.leads for one in replicas))
        yield gauge("shards_resting", "Groups that rest, having nothing to do.", sum(one.is_resting for one in replicas))
        changes = engine.leaderships
        yield counter("leaderships_gained", "Groups that this node has begun to lead.", changes.gained)
        lost = CounterMetricFamily("contextstore_leaderships_lost", "Groups that it has ceased to lead, by why.", labels=["reason"])
        for reason, count in changes.lost.items():
            lost.add_metric([reason.value], count)
        yield lost
        pauses = node.cluster.pauses.count if node.cluster is not None else 0
        yield counter("pauses", "Times at which this node stood still for more than half of an election timeout.", pauses)
        moves = node.moves
        yield counter("snapshots_taken", "Snapshots made for replicas elsewhere.", moves.taken if moves else 0)
        yield counter("snapshots_installed", "Snapshots that replaced a replica's state here.", moves.installed if moves else 0)
        yield counter("snapshot_received_bytes", "Bytes that came for them.", moves.received_bytes if moves else 0)
        yield gauge("dirty_bytes", "Applied effects not yet in the state databases.", upkeep.dirty_bytes)
        yield gauge("hot_contexts", "Contexts in memory.", upkeep.hot_contexts)
        yield gauge("hot_bytes", "Estimated memory of those contexts.", upkeep.hot_bytes)
        yield counter("contexts_evicted", "Contexts dropped from memory; they are read from disk at their next use.", upkeep.evicted)
        yield counter("flushes", "Writes of applied effects to a state database.", upkeep.flushes)
        yield counter("checkpoints", "Checkpoints of state databases.", upkeep.checkpoints)
        yield counter("scrubs", "Passes that took the bytes of purged contexts out of the files.", upkeep.scrubs)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"contextstore_{name}", text, value)


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"contextstore_{name}", text, value)
