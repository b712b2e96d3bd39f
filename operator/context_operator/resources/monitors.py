"""Objects of the Prometheus operator: what to scrape, and what to be woken by."""

from context_operator.resources import names
from context_operator.spec import Cluster, Object

RUNBOOKS = "docs/runbooks.md"


def pod_monitor(cluster: Cluster) -> Object:
    """PodMonitor NAME."""
    name = cluster.metadata.name
    trusts = {
        "ca": {"configMap": {"name": names.authority(name), "key": "ca.crt"}},
        "serverName": f"{name}.{cluster.metadata.namespace}.svc",
    }
    tls: Object = {"scheme": "https", "tlsConfig": trusts}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": names.metadata(cluster, name),
        "spec": {
            "selector": {"matchLabels": names.selector(name)},
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "15s", **(tls if cluster.spec.is_tls else {})}],
            "podTargetLabels": ["app.kubernetes.io/instance"],
        },
    }


def rules(cluster: Cluster) -> Object:
    """PrometheusRule NAME: the alerts, each with its runbook."""
    name = cluster.metadata.name
    spec = cluster.spec
    of = f'namespace="{cluster.metadata.namespace}",pod=~"{name}-[0-9]+"'
    alerts = (
        (
            "ContextStoreNodeNotReady",
            # A node that is gone has no series at all.
            f"(sum(contextstore_ready{{{of}}}) or vector(0)) < {spec.replicas}",
            "5m",
            "warning",
            "A node is not ready.",
            "a-node-does-not-become-ready",
        ),
        (
            "ContextStoreShardsLeaderless",
            f"(sum(contextstore_shards_led{{{of}}}) or vector(0)) < {spec.shards.count + 1}",
            "2m",
            "critical",
            "Shards have no leader: writes to them are refused.",
            "shards-without-a-leader",
        ),
        (
            "ContextStoreShardStopped",
            f"contextstore_shards_stopped{{{of}}} > 0",
            "1m",
            "critical",
            "A replica met a fault and stopped.",
            "a-replica-stopped",
        ),
        ("ContextStoreDiskSlow", f"contextstore_disk_slow{{{of}}} == 1", "10m", "warning", "A node's disk is slow.", "a-disk-is-slow"),
        (
            "ContextStoreOverloaded",
            f"rate(contextstore_http_refused_overload_total{{{of}}}[5m]) > 1",
            "10m",
            "warning",
            "A node refuses requests because a bound was reached.",
            "requests-are-refused",
        ),
        (
            "ContextStoreArchiveNotHealthy",
            f"contextstore_archive_healthy{{{of}}} == 0",
            "10m",
            "warning",
            "History is not copied to Postgres: it waits on the nodes' disks.",
            "the-archive-is-behind",
        ),
        (
            "ContextStoreArchiveLate",
            f"contextstore_archive_late{{{of}}} == 1",
            "1m",
            "critical",
            "More history waits for Postgres than archive_lag_warn_bytes: disks fill.",
            "the-archive-is-behind",
        ),
    )
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": names.metadata(cluster, name),
        "spec": {
            "groups": [
                {
                    "name": f"contextstore-{name}",
                    "rules": [
                        {
                            "alert": alert,
                            "expr": expression,
                            "for": after,
                            "labels": {"severity": severity},
                            "annotations": {"summary": summary, "runbook_url": f"{RUNBOOKS}#{anchor}"},
                        }
                        for alert, expression, after, severity, summary, anchor in alerts
                    ],
                }
            ]
        },
    }
