"""The nodes' settings: environment variables, the same for every pod of a cluster."""

from context_operator.resources import names
from context_operator.spec import Cluster, Object, seconds_of

PREFIX = "CONTEXTSTORE_"
JOINED_FIRST = 3
"""Peers that a new pod asks to be taken in. Not all of them, so that scaling changes no pod."""


def environment(cluster: Cluster) -> list[Object]:
    """As variables of the nodes' container. They stand in the pods themselves, not in a ConfigMap beside them: a container that is started
    again within its pod must not get what a rolling update has not brought there yet."""
    return [{"name": PREFIX + name.upper(), "value": value} for name, value in sorted(settings(cluster).items())]


def tls_files() -> dict[str, str]:
    """The settings that switch TLS on."""
    return {f"tls_{name}_file": f"{names.TLS_DIR}/{file}" for name, file in (("cert", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt"))}


def archive(cluster: Cluster) -> dict[str, str]:
    """The settings of the archive; none without one."""
    postgres = cluster.spec.archive.postgres
    if postgres is None:
        return {}
    found: dict[str, str | int | None] = {
        "archive_postgres_file": f"{names.ARCHIVE_DIR}/{names.ARCHIVE_FILE}",
        "archive_schema": postgres.schema,
        "archive_flush_s": None if postgres.flush_interval is None else max(1, seconds_of(postgres.flush_interval)),
        "archive_batch_messages": postgres.batch_size,
        "archive_tail_keep": cluster.spec.archive.tail_keep,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def settings(cluster: Cluster) -> dict[str, str]:
    """By name as docs/settings.md has them. The user's own come first: what the operator sets wins."""
    meta, spec = cluster.metadata, cluster.spec
    join = ",".join(f"{names.host(meta.name, meta.namespace, ordinal)}:{names.PEER_PORT}" for ordinal in range(JOINED_FIRST))
    defaults = {
        "default_token_budget": spec.defaults.token_budget,
        "default_trigger_ratio": spec.defaults.trigger_ratio,
        "default_target_ratio": spec.defaults.target_ratio,
        "default_tokenizer": spec.defaults.tokenizer,
        "default_policy": spec.defaults.policy_ref.name if spec.defaults.policy_ref is not None else None,
    }
    limits = {name: getattr(spec.limits, name) for name in spec.limits.__struct_fields__}
    chosen = {name: f"{value}" for name, value in {**defaults, **limits}.items() if value is not None}
    return {
        **spec.config,
        **chosen,
        "host": "0.0.0.0",
        "port": str(names.CLIENT_PORT),
        "peer_host": "0.0.0.0",
        "peer_port": str(names.PEER_PORT),
        "data_dir": names.DATA_DIR,
        "shards": str(spec.shards.count),
        "join": join,
        "rebalance": "manual",
        "renew_removed": "true",
        "api_keys_file": f"{names.KEYS_DIR}/{names.KEYS_FILE}",
        **(tls_files() if spec.is_tls else {}),
        **archive(cluster),
        "log_format": "json",
        "drain_s": "5",
    }
