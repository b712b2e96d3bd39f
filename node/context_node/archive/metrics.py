"""What the archiver counts, as Prometheus reads it."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from context_node.archive.archiver import Archiver
from context_node.runtime.metrics import counter, gauge


class ArchiveMetrics(Collector):
    """Counters and gauges of one node's archiver: of the shards that it leads."""

    def __init__(self, archiver: Archiver) -> None:
        self._archiver = archiver

    def collect(self) -> Iterable[Metric]:
        archiver, counters = self._archiver, self._archiver.counters
        yield gauge("archive_healthy", "1 while the last turn of the archiver went well.", int(counters.is_healthy))
        yield gauge("archive_lag_messages", "Messages of shards led here that are not archived yet.", archiver.lag_messages)
        yield gauge("archive_lag_bytes", "Bytes of those messages.", archiver.lag_bytes)
        yield gauge("archive_lag_seconds", "Age of the oldest of them.", archiver.lag_s)
        yield gauge("archive_late", "1 while more than archive_lag_warn_bytes of them wait.", int(counters.is_late))
        yield counter("archive_messages", "Messages copied.", counters.messages)
        yield counter("archive_bytes", "Bytes of those messages.", counters.bytes)
        yield counter("archive_batches", "Transactions that copied them.", counters.batches)
        yield counter("archive_erased_contexts", "Purged contexts that were erased there.", counters.erased)
        failures = CounterMetricFamily("contextstore_archive_failures", "Turns that failed, by cause.", labels=["cause"])
        for cause, count in sorted(counters.failures.items()):
            failures.add_metric([cause], count)
        yield failures
