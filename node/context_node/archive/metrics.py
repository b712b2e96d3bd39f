"""What the archiver counts, as Prometheus reads it."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from context_node.archive.archiver import Archiver
from context_node.archive.cold import ColdReads
from context_node.runtime.metrics import counter, gauge


class ArchiveMetrics(Collector):
    """Counters and gauges of one node's archiver, for the shards that it leads, and of its reads of what was trimmed."""

    def __init__(self, archiver: Archiver, cold: ColdReads) -> None:
        self._archiver = archiver
        self._cold = cold

    def collect(self) -> Iterable[Metric]:
        archiver, counters = self._archiver, self._archiver.counters
        is_healthy = counters.is_healthy and not archiver.lost_contexts
        yield gauge("archive_healthy", "1 while the last turn of the archiver went well and it lost nothing.", int(is_healthy))
        yield gauge("archive_lag_messages", "Messages of shards led here that are not archived yet.", archiver.lag_messages)
        yield gauge("archive_lag_bytes", "Bytes of those messages.", archiver.lag_bytes)
        yield gauge("archive_lag_seconds", "Age of the oldest of them.", archiver.lag_s)
        yield gauge("archive_late", "1 while more than archive_lag_warn_bytes of them wait.", int(counters.is_late))
        yield counter("archive_messages", "Messages copied.", counters.messages)
        yield counter("archive_bytes", "Bytes of those messages.", counters.bytes)
        yield counter("archive_batches", "Transactions that copied them.", counters.batches)
        yield counter("archive_erased_contexts", "Purged contexts that were erased there.", counters.erased)
        yield counter("archive_trimmed_messages", "Messages that left the hot store because the archive has them.", counters.trimmed)
        yield by_cause("archive_failures", "Turns that failed, by cause.", counters.failures)
        cold = self._cold
        yield counter("archive_cold_reads", "Questions to Postgres for messages that were trimmed.", cold.reads)
        yield counter("archive_cold_messages", "Messages that they brought.", cold.messages)
        yield counter("archive_cold_cached_messages", "Trimmed messages that were still in memory.", cold.cached_messages)
        yield by_cause("archive_cold_failures", "Reads of trimmed messages that were refused, by cause.", cold.failures)


def by_cause(name: str, meaning: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"contextstore_{name}", meaning, labels=["cause"])
    for cause, count in sorted(counts.items()):
        family.add_metric([cause], count)
    return family
