"""What the edge counts, and how Prometheus reads it.

Knows routes, status classes and seconds. Does not know handlers. A request costs two list updates and a bisect: prometheus-client's own
histogram takes a lock for each value, which is a tenth of a small request. Invariant: only the event loop's thread writes; the scrape,
on the same thread, reads.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
NO_ROUTE = "none"


class RouteMetrics:
    """The counts of one route."""

    __slots__ = ("buckets", "classes", "route", "seconds")

    def __init__(self, route: str) -> None:
        self.route = route
        self.classes = [0] * (len(CLASSES) + 1)
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0

    def observe(self, status: int, seconds: float) -> None:
        self.classes[status // 100] += 1
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds


class HttpMetrics(Collector):
    """All that the edge counts. Registers itself on `registry`."""

    def __init__(self, registry: CollectorRegistry, routes: Sequence[str]) -> None:
        self.of_route = {route: RouteMetrics(route) for route in (*routes, NO_ROUTE)}
        self.in_flight = 0
        self.connections = 0
        self.refused_connections = 0
        self.late_heads = 0
        self.streams = 0
        self.stream_frames = 0
        self.refused_overload = 0
        self.bytes_in = 0
        self.bytes_out = 0
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "contextstore_http_requests", "Requests answered, by route and class of status.", labels=["route", "status"]
        )
        duration = HistogramMetricFamily(
            "contextstore_http_request_duration_seconds", "Time from the request's head to its answer, by route.", labels=["route"]
        )
        for one in self.of_route.values():
            total = sum(one.classes)
            if not total:
                continue
            for place, name in enumerate(CLASSES, 1):
                if one.classes[place]:
                    requests.add_metric([one.route, name], one.classes[place])
            duration.add_metric([one.route], _cumulative(one.buckets), one.seconds)
        yield requests
        yield duration
        yield GaugeMetricFamily("contextstore_http_requests_in_flight", "Requests being worked on.", self.in_flight)
        yield GaugeMetricFamily("contextstore_http_connections", "Connections open.", self.connections)
        yield CounterMetricFamily(
            "contextstore_http_refused_connections", "Connections closed at once because too many were open.", self.refused_connections
        )
        yield CounterMetricFamily(
            "contextstore_http_late_heads", "Connections closed because no request's head came in time.", self.late_heads
        )
        yield GaugeMetricFamily("contextstore_http_streams", "Streams open.", self.streams)
        yield CounterMetricFamily("contextstore_http_stream_frames", "Frames sent on streams.", self.stream_frames)
        yield CounterMetricFamily(
            "contextstore_http_refused_overload", "Requests and streams refused because a bound was reached.", self.refused_overload
        )
        yield CounterMetricFamily("contextstore_http_request_body_bytes", "Bytes of request bodies read.", self.bytes_in)
        yield CounterMetricFamily("contextstore_http_response_body_bytes", "Bytes of answers' bodies, streams included.", self.bytes_out)


def _cumulative(buckets: Sequence[int]) -> list[tuple[str, float]]:
    total = 0
    rows: list[tuple[str, float]] = []
    for bound, count in zip((*(f"{bound:g}" for bound in BUCKETS_S), "+Inf"), buckets, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest(registry)
