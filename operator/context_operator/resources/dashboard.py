"""The overview in Grafana: is it well, what do clients ask, what do disks and shards do.

Pure: the dashboard as JSON, for one cluster or, with variables, for any. `python -m context_operator.resources.dashboard FILE` writes the
latter, which the chart carries. Queries are PromQL; the layout is Grafana's 24 columns (schemaVersion 39, Grafana 10 and later).
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from context_operator.resources import names
from context_operator.spec import Cluster, Object

LABEL = {"grafana_dashboard": "1"}
"""What Grafana's sidecar looks for, by its own default."""

COLUMNS, PANEL_HEIGHT, STAT_HEIGHT = 24, 8, 4
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF = 'namespace="$namespace",pod=~"$cluster-[0-9]+"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Graph:
    """A panel: its title and what it tells, the unit by Grafana's name, and queries with their legends. `red_above`: a number of which
    more is a fault."""

    title: str
    tells: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    red_above: float | None = None
    is_stat: bool = False


def _now(metric: str) -> str:
    return f"contextstore_{metric}{{{OF}}}"


def _rate(metric: str, by: str = "pod", only: str = "") -> str:
    return f"sum by ({by}) (rate(contextstore_{metric}{{{OF}{only}}}{RATE}))"


def _latency(share: str) -> str:
    return f"histogram_quantile({share}, {_rate('http_request_duration_seconds_bucket', 'le')})"


def _stat(title: str, tells: str, query: str, unit: str = "none", red_above: float | None = None) -> Graph:
    return Graph(title, tells, unit, ((query, ""),), red_above, is_stat=True)


def _of_pods(title: str, tells: str, query: str, unit: str = "none") -> Graph:
    return Graph(title, tells, unit, ((query, "{{pod}}"),))


IS_IT_WELL = (
    _stat("Nodes ready", "Nodes that serve.", f"sum({_now('ready')})"),
    _stat("Shards stopped", "Replicas that met a fault. See the runbook.", f"sum({_now('shards_stopped')})", red_above=0),
    _stat("Shards led", "Shards with a leader, the system's own included.", f"sum({_now('shards_led')})"),
    _stat("Slow disks", "Nodes that hand over what they lead, as their disk is slow.", f"sum({_now('disk_slow')})", red_above=0),
    _stat("Requests", "Of all nodes.", f"sum({_rate('http_requests_total')})", "reqps"),
    _stat("p99", "Of all requests.", _latency("0.99"), "s"),
)

REQUESTS = (
    Graph("Requests by route", "", "reqps", ((_rate("http_requests_total", "route"), "{{route}}"),)),
    Graph(
        "Answers that are errors",
        "4xx are the clients', 5xx ours or overload.",
        "reqps",
        ((_rate("http_requests_total", "status", ',status=~"4xx|5xx"'), "{{status}}"),),
    ),
    Graph("Latency", "Of all routes.", "s", tuple((_latency(share), f"p{legend}") for share, legend in (("0.5", "50"), ("0.99", "99")))),
    Graph(
        "Refused",
        "A bound was reached: the node is too small or a client too eager.",
        "reqps",
        ((_rate("http_refused_overload_total"), "{{pod}}"), (_rate("http_refused_connections_total"), "{{pod}} connections")),
    ),
    _of_pods("Streams", "Open now.", _now("http_streams")),
    _of_pods("Connections", "Open now.", _now("http_connections")),
)

SHARDS = (
    _of_pods("Led by", "Even unless a node is drained or slow.", _now("shards_led")),
    _of_pods("Replicas on", "", _now("shards")),
    _of_pods("Entries applied", "", _rate("entries_applied_total"), "ops"),
    Graph(
        "Leaderships lost",
        "Handed over is on purpose. The rest: nodes that die, stand still or are cut off.",
        "ops",
        ((_rate("leaderships_lost_total", "reason"), "{{reason}}"), (_rate("pauses_total"), "{{pod}} stood still")),
    ),
    _of_pods("Snapshots received", "For replicas that are new or far behind.", _rate("snapshot_received_bytes_total"), "Bps"),
)

DISK_AND_MEMORY = (
    _of_pods("fsyncs", "Commits of the log.", _rate("log_commits_total"), "ops"),
    _of_pods("Records of one fsync", "", f"{_rate('log_records_total')} / {_rate('log_commits_total')}"),
    _of_pods("Time of an fsync", "Running mean.", _now("commit_mean_seconds"), "s"),
    Graph("To be replayed by a restart", "", "bytes", ((_now("log_memory_bytes"), "{{pod}} log"), (_now("dirty_bytes"), "{{pod}} dirty"))),
    _of_pods("Windows in memory", "", _now("hot_bytes"), "bytes"),
    _of_pods(
        "Windows dropped from memory",
        "Many: hot_contexts_bytes_max is small for what is in use.",
        _rate("contexts_evicted_total"),
        "ops",
    ),
)

ARCHIVE = (
    _of_pods(
        "Waits for Postgres",
        "Of the shards that a node leads; on disk it is that much on every replica.",
        _now("archive_lag_bytes"),
        "bytes",
    ),
    _of_pods("Age of the oldest that waits", "Seconds while all is well.", _now("archive_lag_seconds"), "s"),
    _of_pods("Messages copied", "", _rate("archive_messages_total"), "ops"),
    Graph("Turns that failed", "By cause.", "ops", ((_rate("archive_failures_total", "cause"), "{{cause}}"),)),
)

OPERATOR = (
    Graph("Passes", "Over all clusters.", "ops", ((f"sum by (outcome) (rate(contextstore_operator_passes_total{RATE}))", "{{outcome}}"),)),
    Graph("Oldest pass", "Above 300 s its liveness probe fails.", "s", (("max(contextstore_operator_oldest_pass_seconds)", ""),), 299),
)

ROWS: tuple[tuple[str, tuple[Graph, ...]], ...] = (
    ("Is it well?", IS_IT_WELL),
    ("Requests", REQUESTS),
    ("Shards", SHARDS),
    ("Disk and memory", DISK_AND_MEMORY),
    ("Archive", ARCHIVE),
    ("Operator", OPERATOR),
)


def config_map(cluster: Cluster) -> Object:
    """ConfigMap NAME-dashboard with the dashboard of one cluster."""
    meta = cluster.metadata
    body = names.metadata(cluster, names.dashboard(meta.name))
    body["labels"] = {**body["labels"], **LABEL}
    shown = dashboard(meta.namespace, meta.name)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": body,
        "data": {f"contextstore-{meta.namespace}-{meta.name}.json": json.dumps(shown, sort_keys=True)},
    }


def dashboard(namespace: str = "", cluster: str = "") -> Object:
    """The dashboard of one cluster; without names of any, to be chosen at its head."""
    of_one = bool(cluster)
    digest = hashlib.sha256(f"{namespace}/{cluster}".encode()).hexdigest()[:12]
    return {
        "uid": f"contextstore-{digest if of_one else 'overview'}",
        "title": f"Context Store {namespace}/{cluster}" if of_one else "Context Store",
        "tags": ["contextstore"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables(namespace, cluster)},
        "panels": list(_panels()),
    }


def _variables(namespace: str, cluster: str) -> list[Object]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    if cluster:
        fixed = (("namespace", namespace), ("cluster", cluster))
        return [source, *({"name": name, "type": "constant", "query": value, "hide": 2} for name, value in fixed)]
    return [
        source,
        _choice("namespace", "Namespace", "label_values(contextstore_ready, namespace)", ""),
        _choice("cluster", "Cluster", 'label_values(contextstore_ready{namespace="$namespace"}, pod)', "/(.*)-[0-9]+$/"),
    ]


def _choice(name: str, label: str, query: str, regex: str) -> Object:
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name}, "regex": regex,
        "refresh": 2, "sort": 1,
    }  # fmt: skip


def _panels() -> Iterator[Object]:
    number, top = 0, 0
    for title, graphs in ROWS:
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _place(top, 0, COLUMNS, 1)}
        top += 1
        for at, width, height, graph in _arranged(graphs):
            number += 1
            yield {**_panel(graph), "id": number, "gridPos": _place(top + at[1], at[0], width, height)}
        top += sum(1 for _ in range(0, len(graphs), _in_a_row(graphs))) * (STAT_HEIGHT if graphs[0].is_stat else PANEL_HEIGHT)


def _in_a_row(graphs: Sequence[Graph]) -> int:
    return len(graphs) if graphs[0].is_stat else 2


def _arranged(graphs: Sequence[Graph]) -> Iterator[tuple[tuple[int, int], int, int, Graph]]:
    many = _in_a_row(graphs)
    width, height = COLUMNS // many, STAT_HEIGHT if graphs[0].is_stat else PANEL_HEIGHT
    for place, graph in enumerate(graphs):
        yield ((place % many) * width, (place // many) * height), width, height, graph


def _place(top: int, left: int, width: int, height: int) -> Object:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(graph: Graph) -> Object:
    targets = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto"}
        for place, (expression, legend) in enumerate(graph.queries)
    ]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if graph.red_above is not None:
        # Grafana colours from a value on.
        steps.append({"color": "red", "value": graph.red_above + 1})
    return {
        "type": "stat" if graph.is_stat else "timeseries",
        "title": graph.title,
        "description": graph.tells,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": graph.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
    }


def document() -> str:
    """The dashboard of any cluster, as the chart carries it."""
    return json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(document())
