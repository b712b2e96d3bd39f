"""Settings, mapped onto what each part of a node asks for.

Knows the names on both sides and nothing else. Invariant: every setting that reaches a running node goes through here, so this file
is the answer to "what does this setting change?".
"""

from collections.abc import Callable
from dataclasses import replace

from context_node import __version__
from context_node.api_keys import KeyFileError, KeyRing, keys_from_environment
from context_node.archive import uris
from context_node.archive.archiver import ArchiverOptions
from context_node.archive.batches import BatchLimits
from context_node.archive.postgres import PostgresOptions
from context_node.cli.exits import CannotStart
from context_node.contexts.commands import Defaults, Rules
from context_node.http.limits import HttpLimits
from context_node.runtime.cluster import ClusterOptions
from context_node.runtime.log_file import LogOptions
from context_node.runtime.membership import address
from context_node.runtime.node import NodeOptions
from context_node.runtime.upkeep import UpkeepLimits
from context_node.settings import Settings
from context_node.tls import Credentials, TlsError, TlsFiles

SECRET_BYTES_MIN = 16


def cluster_options(settings: Settings, credentials: Credentials | None = None) -> ClusterOptions | None:
    """What the part that talks to other nodes takes; None for a node alone. Raises CannotStart for a secret that cannot be used."""
    if not settings.is_clustered:
        return None
    for peer in (*settings.join, *([settings.peer_address] if settings.peer_address else [])):
        try:
            address(peer)
        except ValueError as error:
            raise CannotStart(f"{error}; give the host and peer port of a node, as in --join 10.0.0.1:4001.") from error
    return ClusterOptions(
        host=settings.peer_host,
        port=settings.peer_port,
        secret=cluster_secret(settings),
        advertise=settings.peer_address or "",
        client=f"{settings.host}:{settings.port}",
        zone=settings.zone,
        join=settings.join,
        tick_s=settings.raft_tick_s,
        election_ticks=settings.election_ticks,
        slow_disk_s=settings.slow_disk_s,
        call_timeout_s=settings.request_timeout_s,
        cluster_id=settings.cluster_id or "",
        renews=settings.renew_removed,
        tls=credentials if settings.tls_ca_file is not None else None,
    )


def cluster_secret(settings: Settings) -> bytes:
    """The secret that all nodes of a cluster share. Raises CannotStart."""
    path = settings.cluster_secret_file
    if path is None:
        return (settings.cluster_secret or "").encode()
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise CannotStart(f"The cluster's secret cannot be read from {path}: {error.strerror}.") from error
    if len(secret) < SECRET_BYTES_MIN:
        raise CannotStart(f"The secret in {path} has {len(secret)} bytes; it needs {SECRET_BYTES_MIN}. Make one with: openssl rand -hex 32")
    return secret


def credentials(settings: Settings) -> Credentials | None:
    """The node's certificate; None where it speaks no TLS. Raises CannotStart for files that cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    try:
        return Credentials(TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file))
    except TlsError as error:
        raise CannotStart(f"{error}.") from error


def node_options(settings: Settings, credentials: Credentials | None = None) -> NodeOptions:
    """What the runtime takes. Raises CannotStart."""
    return NodeOptions(
        has_archive=settings.has_archive,
        cluster=cluster_options(settings, credentials),
        version=__version__,
        data_dir=str(settings.data_dir),
        name=settings.node_name,
        shards=settings.shards,
        rules=Rules(
            window_items_max=settings.window_items_max,
            keys_max=settings.idempotency_keys_max,
            keys_ttl_ms=round(settings.idempotency_ttl_s * 1000),
            metadata_bytes_max=settings.metadata_bytes_max,
        ),
        defaults=Defaults(
            token_budget=settings.default_token_budget,
            trigger_ratio=settings.default_trigger_ratio,
            target_ratio=settings.default_target_ratio,
            tokenizer=settings.default_tokenizer,
            policy_ref=settings.default_policy,
        ),
        upkeep=UpkeepLimits(
            flush_age_s=settings.dirty_age_s_max,
            dirty_bytes_max=settings.dirty_bytes_max,
            log_bytes_per_shard_max=settings.shard_log_bytes_max,
            log_bytes_max=settings.node_log_bytes_max,
            hot_bytes_max=settings.hot_contexts_bytes_max,
        ),
        log=LogOptions(wal_bytes_max=settings.wal_bytes_max),
        state_cache_bytes=settings.sqlite_cache_bytes_max,
        counting_threads=settings.counting_threads,
        stream_lag_max=settings.stream_lag_messages_max,
        queued_bytes_per_shard_max=settings.proposal_queue_bytes_max,
        switch_interval_s=settings.switch_interval_s,
    )


COLD_CONNECT_S, COLD_COMMAND_S = 3.0, 10.0
"""Whoever reads what was trimmed waits for it: a refusal that comes late is worth less than one that comes soon."""


def archive_options(settings: Settings) -> tuple[Callable[[], PostgresOptions], ArchiverOptions] | None:
    """What the archive takes: how to reach it now, and when to copy; None without one."""
    if not settings.has_archive:
        return None

    def postgres() -> PostgresOptions:
        path = settings.archive_postgres_file
        dsn = uris.read_file(path) if path is not None else settings.archive_postgres or ""
        return PostgresOptions(dsn, settings.archive_schema)

    limits = BatchLimits(settings.archive_batch_messages, tail_keep=settings.archive_tail_keep)
    return postgres, ArchiverOptions(settings.archive_flush_s, limits, settings.archive_lag_warn_bytes)


def for_reading(options: PostgresOptions) -> PostgresOptions:
    """How readers of what was trimmed connect."""
    return replace(options, connect_timeout_s=COLD_CONNECT_S, command_timeout_s=COLD_COMMAND_S)


def http_limits(settings: Settings, connections_max: int) -> HttpLimits:
    """What the edge takes. `connections_max` is the setting, lowered to what the process may open."""
    return HttpLimits(
        id_bytes_max=settings.id_bytes_max,
        message_bytes_max=settings.message_bytes_max,
        batch_messages_max=settings.batch_messages_max,
        batch_bytes_max=settings.batch_bytes_max,
        metadata_bytes_max=settings.metadata_bytes_max,
        parts_max=settings.parts_max,
        json_depth_max=settings.json_depth_max,
        page_messages_max=settings.page_messages_max,
        requests_in_flight_max=settings.requests_in_flight_max,
        request_timeout_s=settings.request_timeout_s,
        connections_max=connections_max,
        head_timeout_s=settings.head_timeout_s,
        streams_max=settings.streams_max,
        heartbeat_s=settings.heartbeat_s,
        stream_buffer_bytes=settings.stream_buffer_bytes,
        compression=settings.compression,
        compression_bytes_min=settings.compression_bytes_min,
    )


def key_ring(settings: Settings) -> KeyRing | None:
    """The node's keys; None in open mode. Raises CannotStart for a file or an entry that cannot be used."""
    if settings.open_mode:
        return None
    try:
        return KeyRing(settings.api_keys_file, keys_from_environment(settings.api_keys))
    except (KeyFileError, ValueError) as error:
        raise CannotStart(f"{error}.") from error
