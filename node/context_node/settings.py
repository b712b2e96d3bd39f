# ruff: noqa: RUF009 -- the rows of the table are calls of setting(), made once
"""Every setting of a node: name, type, default, unit, range and reason, in one table.

Knows: the class `Settings`, which is the table, and the rules that tie two settings together. Does not know how they
are read (`setting_sources`) nor who uses them: the command line maps them onto what each part asks for.

Invariants: a `Settings` made by `load_settings` is within all ranges and passes `problems()`; it never changes.
The page docs/settings.md is written from this table by `python -m context_node.settings FILE`.
"""

import ipaddress
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from context_node import setting_sources
from context_node.setting_sources import Loaded, SettingsError, setting

__all__ = ["KNOWN_ENV", "Loaded", "Settings", "SettingsError", "load_settings", "setting_options"]

KIB, MIB, GIB = 2**10, 2**20, 2**30

# Variables with our prefix that the command line reads itself; not settings of a node.
KNOWN_ENV = ("CONTEXTSTORE_CONFIG", "CONTEXTSTORE_URL", "CONTEXTSTORE_API_KEY")

SERVER = "Server"
CLUSTER = "Cluster"
ACCESS = "Access"
LIMITS = "Limits of requests"
CONTEXTS = "Defaults of contexts"
STREAMS = "Streams"
STORAGE = "Storage and memory"
ARCHIVE = "Archive"
PROCESS = "Process"


# fmt: off
# Two or three lines a row: the table is meant to be read from top to bottom.
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one node. Sizes are in bytes, times in seconds, as the names say."""

    host: str = setting(
        "127.0.0.1", group=SERVER, low=1, high=255, advanced=False,
        reason="address to listen on; loopback unless you say otherwise, because open mode is allowed only there",
    )
    port: int = setting(
        4000, group=SERVER, low=0, high=65535, advanced=False,
        reason="port of the HTTP API; 0 takes a free one",
    )
    data_dir: Path = setting(
        Path("data"), group=SERVER, advanced=False,
        reason="directory that holds everything the node keeps; created if missing, used by one process at a time",
    )
    node_name: str = setting(
        "node-0", group=SERVER, low=1, high=63, pattern=r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?",
        reason="the node's name in logs and in the header X-Context-Leader",
    )
    shards: int = setting(
        32, group=SERVER, unit="shards", low=1, high=1024,
        reason="number of Raft groups; fixed when the data directory is made, since ids are hashed onto them",
    )

    cluster_secret_file: Path | None = setting(
        None, group=CLUSTER, advanced=False,
        reason="file with the cluster's secret (at least 16 bytes, the same on every node); with it the node talks to others",
    )
    cluster_secret: str | None = setting(
        None, group=CLUSTER, secret=True, low=16, high=4096,
        reason="the secret itself, for a secret store that fills the environment; never a flag",
    )
    peer_host: str = setting(
        "127.0.0.1", group=CLUSTER, low=1, high=255,
        reason="address to listen on for other nodes",
    )
    peer_port: int = setting(
        4001, group=CLUSTER, low=0, high=65535, advanced=False,
        reason="port for other nodes; 0 takes a free one",
    )
    peer_address: str | None = setting(
        None, group=CLUSTER, low=3, high=300,
        reason="HOST:PORT under which other nodes reach this one, if it is not peer_host:peer_port",
    )
    join: tuple[str, ...] = setting(
        (), group=CLUSTER, high=16, advanced=False,
        reason="HOST:PORT (peer_port) of nodes to join, separated by commas; without any, an empty data directory begins a cluster",
    )
    cluster_id: str | None = setting(
        None, group=CLUSTER, low=32, high=32, pattern=r"[0-9a-f]{32}",
        reason="the only cluster that this node may belong to or begin (32 hexadecimal digits); without it, any",
    )
    renew_removed: bool = setting(
        False, group=CLUSTER,
        reason="a data directory that was removed from its cluster is emptied, and the node joins anew; for whoever manages nodes by "
        "place, as the operator does",
    )
    zone: str = setting(
        "", group=CLUSTER, low=0, high=63,
        reason="failure zone of this node; replicas of a shard are kept in different ones where there are enough",
    )
    raft_tick_s: float = setting(
        0.1, group=CLUSTER, unit="s", low=0.005, high=5,
        reason="step of Raft's time; a leader is heard of every second step",
    )
    election_ticks: int = setting(
        10, group=CLUSTER, unit="ticks", low=4, high=100,
        reason="steps without a leader before an election, drawn from here up to twice as many; longer than any pause of a healthy node",
    )

    slow_disk_s: float = setting(
        0.5, group=CLUSTER, unit="s", low=0, high=60,
        reason="a node whose fsyncs take longer than this for a while hands over what it leads to nodes with quicker disks; 0: never",
    )
    rebalance: str = setting(
        "auto", group=CLUSTER, choices=("auto", "manual"),
        reason="whether the nodes move replicas and leaders by themselves; manual leaves it to `contextstore cluster rebalance`",
    )

    api_keys_file: Path | None = setting(
        None, group=ACCESS, advanced=False,
        reason="file of hashed API keys, kept by `contextstore keys`; re-read when it changes",
    )
    api_keys: tuple[str, ...] = setting(
        (), group=ACCESS, secret=True, high=1000,
        reason="API keys in plain, separated by commas, each `cs_ID_SECRET` (scopes read and write) or "
        "`cs_ID_SECRET=read+admin`; for a secret store that fills the environment; never a flag",
    )
    tls_cert_file: Path | None = setting(
        None, group=ACCESS, advanced=False,
        reason="PEM file with the node's certificate, and those up to its authority; with it the API is HTTPS. Re-read when it changes",
    )
    tls_key_file: Path | None = setting(
        None, group=ACCESS, advanced=False,
        reason="PEM file with the certificate's private key, without a password; re-read when it changes",
    )
    tls_ca_file: Path | None = setting(
        None, group=ACCESS,
        reason="PEM file with the authorities of the nodes' certificates; with it nodes speak mutual TLS to each other, and each "
        "certificate must name the host under which others dial the node. Re-read when it changes",
    )
    open: bool = setting(
        False, group=ACCESS, advanced=False,
        reason="serve without keys; implied on a loopback address when no key is configured, explicit anywhere else",
    )
    cors_origins: tuple[str, ...] = setting(
        (), group=ACCESS, high=100,
        reason="origins whose pages may call the API (`*` for any); none turns CORS off",
    )

    id_bytes_max: int = setting(
        256, group=LIMITS, unit="bytes", low=16, high=1024,
        reason="longest context id, message id or idempotency key; ids are part of every key on disk",
    )
    message_bytes_max: int = setting(
        MIB, group=LIMITS, unit="bytes", low=KIB, high=16 * MIB,
        reason="largest message; counting tokens and copying to followers grow with it",
    )
    batch_messages_max: int = setting(
        1000, group=LIMITS, unit="messages", low=1, high=10_000,
        reason="most messages of one append; applied in one step",
    )
    batch_bytes_max: int = setting(
        8 * MIB, group=LIMITS, unit="bytes", low=KIB, high=64 * MIB,
        reason="largest request body; one append is one log entry, and others wait while it is written",
    )
    metadata_bytes_max: int = setting(
        16 * KIB, group=LIMITS, unit="bytes", low=0, high=MIB,
        reason="metadata of a context or a message; lists filter on it, so it must stay small",
    )
    parts_max: int = setting(
        256, group=LIMITS, unit="parts", low=1, high=4096,
        reason="parts of one message; each is counted and may be evicted alone",
    )
    json_depth_max: int = setting(
        64, group=LIMITS, unit="levels", low=8, high=256,
        reason="nesting of a body; checked before decoding, far from any recursion limit",
    )
    request_timeout_s: float = setting(
        30.0, group=LIMITS, unit="s", low=0.1, high=600,
        reason="a request answers 503 after this; a write may still have happened, so retry it with a key",
    )
    requests_in_flight_max: int = setting(
        1024, group=LIMITS, unit="requests", low=1, high=100_000,
        reason="requests worked on at once; more get 503 with Retry-After, early, instead of timing out late",
    )
    connections_max: int = setting(
        8192, group=LIMITS, unit="connections", low=1, high=1_000_000,
        reason="open connections of a node; more are closed at once. Lowered, with a warning, to what the limit of open files allows",
    )
    head_timeout_s: float = setting(
        20.0, group=LIMITS, unit="s", low=0.1, high=600,
        reason="a new connection that has sent no whole request head by then is closed; after an answer keep-alive (75 s) bounds it",
    )
    page_messages_max: int = setting(
        1000, group=LIMITS, unit="messages", low=1, high=10_000,
        reason="largest `limit` of a page of history",
    )

    default_token_budget: int = setting(
        8192, group=CONTEXTS, unit="tokens", low=1, high=10_000_000, advanced=False,
        reason="`token_budget` of a context created without one",
    )
    default_trigger_ratio: float = setting(
        0.7, group=CONTEXTS, unit="of the room", low=0.01, high=1,
        reason="compaction starts above this share; lower means earlier and smaller windows",
    )
    default_target_ratio: float | None = setting(
        None, group=CONTEXTS, unit="of the room", low=0.001, high=0.999,
        reason="compaction ends at this share; without one it follows the trigger: min(0.5, trigger × 5/7)",
    )
    default_tokenizer: str = setting(
        "o200k_base", group=CONTEXTS, choices=("o200k_base", "cl100k_base"),
        reason="tokenizer of a context created without one; o200k_base is that of OpenAI's models since GPT-4o",
    )
    default_policy: str | None = setting(
        None, group=CONTEXTS, low=1, high=256,
        reason="named policy of contexts that name none; without one the policy marked default, else plain `last_n`",
    )
    window_items_max: int = setting(
        10_000, group=CONTEXTS, unit="items", low=10, high=100_000,
        reason="most items of a window, so that many tiny messages cannot make a window slow to rewrite",
    )
    idempotency_ttl_s: float = setting(
        86_400.0, group=CONTEXTS, unit="s", low=60, high=2_592_000,
        reason="how long an idempotency key is remembered; a day outlives the retries of any queue we know",
    )
    idempotency_keys_max: int = setting(
        4096, group=CONTEXTS, unit="keys", low=16, high=65_536,
        reason="newest keys remembered for each context",
    )

    streams_max: int = setting(
        2048, group=STREAMS, unit="streams", low=0, high=100_000,
        reason="open streams of a node; each holds a socket and a buffer",
    )
    heartbeat_s: float = setting(
        15.0, group=STREAMS, unit="s", low=0.1, high=300,
        reason="silence on a stream before a heartbeat; proxies cut at 30 to 60 s",
    )
    stream_buffer_bytes: int = setting(
        256 * KIB, group=STREAMS, unit="bytes", low=4 * KIB, high=64 * MIB,
        reason="what may wait in a slow reader's socket before the node stops sending to it",
    )
    stream_lag_messages_max: int = setting(
        1000, group=STREAMS, unit="messages", low=1, high=1_000_000,
        reason="how far a live reader may fall behind before it gets a `gap` frame and goes on from the newest message",
    )

    proposal_queue_bytes_max: int = setting(
        16 * MIB, group=STORAGE, unit="bytes", low=MIB, high=GIB,
        reason="commands of one shard that wait for the log; above it writes get 503, so that latency stays bounded",
    )
    dirty_bytes_max: int = setting(
        32 * MIB, group=STORAGE, unit="bytes", low=MIB, high=4 * GIB,
        reason="applied effects of the node not yet in the state databases; bounds memory and the replay after a crash",
    )
    dirty_age_s_max: float = setting(
        5.0, group=STORAGE, unit="s", low=0.05, high=300,
        reason="age at which applied effects are written to the state databases",
    )
    shard_log_bytes_max: int = setting(
        16 * MIB, group=STORAGE, unit="bytes", low=256 * KIB, high=GIB,
        reason="log of one shard in memory; above it the shard is flushed, checkpointed and its log truncated",
    )
    node_log_bytes_max: int = setting(
        64 * MIB, group=STORAGE, unit="bytes", low=MIB, high=16 * GIB,
        reason="log of all shards in memory; above it the largest are truncated first",
    )
    wal_bytes_max: int = setting(
        4 * MIB, group=STORAGE, unit="bytes", low=MIB, high=GIB,
        reason="write-ahead file of the Raft log at which it is checkpointed; larger: fewer checkpoints, but commits wait longer for one",
    )
    hot_contexts_bytes_max: int = setting(
        64 * MIB, group=STORAGE, unit="bytes", low=MIB, high=64 * GIB, advanced=False,
        reason="windows kept in memory; a context beyond it is read from disk at its next use",
    )
    sqlite_cache_bytes_max: int = setting(
        64 * MIB, group=STORAGE, unit="bytes", low=4 * MIB, high=64 * GIB,
        reason="page cache of all databases of the node together",
    )

    archive_postgres_file: Path | None = setting(
        None, group=ARCHIVE, advanced=False,
        reason="file with the connection URI of Postgres; with it history is copied there behind the writes. Read at every connection",
    )
    archive_postgres: str | None = setting(
        None, group=ARCHIVE, secret=True, low=1, high=4096,
        reason="the URI itself (`postgresql://user:password@host/database?sslmode=verify-full`), for a secret store that fills the "
        "environment; never a flag",
    )
    archive_schema: str = setting(
        "contextstore", group=ARCHIVE, low=1, high=63, pattern=r"(?!pg_|information_schema$)[a-z_][a-z0-9_]*",
        reason="schema of the archive's tables, made if missing; a cluster needs one of its own",
    )
    archive_flush_s: float = setting(
        5.0, group=ARCHIVE, unit="s", low=0.01, high=3600,
        reason="how long messages wait to be copied together; shorter: less to lose with the cluster, more transactions that writers feel",
    )
    archive_batch_messages: int = setting(
        1_000, group=ARCHIVE, unit="messages", low=1, high=10_000,
        reason="most messages of one transaction; they are encoded in one go, some 2 µs each, while others wait",
    )
    archive_lag_warn_bytes: int = setting(
        GIB, group=ARCHIVE, unit="bytes", low=MIB, high=1024 * GIB,
        reason="bytes of messages led here that wait for the archive, above which it counts as late: while Postgres is away disks fill",
    )
    archive_tail_keep: int | None = setting(
        None, group=ARCHIVE, unit="messages", low=0, high=1_000_000_000, advanced=False,
        reason="so many of a context's newest messages stay on the nodes' disks; older ones that the archive has confirmed are removed "
        "there, and read from Postgres. Without it nothing is removed",
    )

    log_format: str = setting(
        "json", group=PROCESS, choices=("json", "console"), advanced=False,
        reason="JSON lines for machines; `contextstore dev` prints for people",
    )
    log_level: str = setting(
        "info", group=PROCESS, choices=("debug", "info", "warning", "error"), advanced=False,
        reason="least severe event that is logged; message contents and keys never are",
    )
    access_log: bool = setting(
        False, group=PROCESS,
        reason="an event for each request; costs about a tenth of the throughput",
    )
    drain_s: float = setting(
        5.0, group=PROCESS, unit="s", low=0, high=300,
        reason="after SIGTERM the node reports not ready but serves on this long, until load balancers have noticed",
    )
    compression: bool = setting(
        True, group=PROCESS,
        reason="gzip or zstd for answers when the client accepts it; never for streams",
    )
    compression_bytes_min: int = setting(
        KIB, group=PROCESS, unit="bytes", low=64, high=MIB,
        reason="smallest answer worth compressing",
    )
    counting_threads: int = setting(
        2, group=PROCESS, unit="threads", low=1, high=64,
        reason="large texts counted at once beside the event loop; a bound, so that one client cannot take all cores",
    )
    switch_interval_s: float = setting(
        0.0005, group=PROCESS, unit="s", low=0.00001, high=0.1,
        reason="how long a thread may hold the interpreter while the event loop waits (Python's own default is 0.005)",
    )

    # fmt: on
    def problems(self) -> list[tuple[str, str]]:
        """Settings that do not fit each other: (the setting to name, a sentence)."""
        found = []
        if self.batch_bytes_max < self.message_bytes_max:
            found.append(("batch_bytes_max", f"must be at least message_bytes_max ({self.message_bytes_max})"))
        if self.proposal_queue_bytes_max < self.batch_bytes_max:
            found.append(("proposal_queue_bytes_max", f"must be at least batch_bytes_max ({self.batch_bytes_max})"))
        if self.node_log_bytes_max < self.shard_log_bytes_max:
            found.append(("node_log_bytes_max", f"must be at least shard_log_bytes_max ({self.shard_log_bytes_max})"))
        if self.default_target_ratio is not None and self.default_target_ratio >= self.default_trigger_ratio:
            found.append(
                ("default_target_ratio", f"must be below default_trigger_ratio ({self.default_trigger_ratio:g})")
            )
        if self.join and not self.is_clustered:
            found.append(("join", "needs the cluster's secret: give --cluster-secret-file"))
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            missing = "tls_key_file" if self.tls_key_file is None else "tls_cert_file"
            found.append((missing, "must be given too: a certificate and its private key come together"))
        elif self.tls_ca_file is not None and self.tls_cert_file is None:
            found.append(("tls_ca_file", "needs a certificate to show: give --tls-cert-file and --tls-key-file"))
        if not self.has_keys and not self.open and not self.on_loopback:
            sentence = (
                f"{self.host} can be reached from other machines and no API key is configured: "
                "give --api-keys-file (see `contextstore keys create --help`), or --open if the network protects it"
            )
            found.append(("host", sentence))
        return found

    @property
    def has_archive(self) -> bool:
        """Whether history is copied to Postgres."""
        return self.archive_postgres is not None or self.archive_postgres_file is not None

    @property
    def is_clustered(self) -> bool:
        """Whether the node talks to others."""
        return self.cluster_secret is not None or self.cluster_secret_file is not None

    @property
    def has_keys(self) -> bool:
        """Whether keys are configured; a file counts even while it holds none, so that it never opens the node."""
        return bool(self.api_keys) or self.api_keys_file is not None

    @property
    def on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name: whatever it resolves to, it was not meant for this machine alone

    @property
    def open_mode(self) -> bool:
        """Whether requests are served without a key."""
        return self.open or (self.on_loopback and not self.has_keys)


def load_settings(
    *,
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    config: Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Loaded[Settings]:
    """Settings from flags, environment (None: the process's), TOML file and defaults. Raises SettingsError."""
    return setting_sources.load(
        Settings, flags=flags, env=env, config=config, defaults=defaults, env_of_others=KNOWN_ENV
    )


def setting_options(defaults: Mapping[str, object] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A click decorator: the command gets `flags` and `config`, to be passed to `load_settings`."""
    return setting_sources.options(Settings, defaults=defaults)


DOCUMENTATION_HEAD = """# Settings

<!-- Made from settings.py by `make docs-settings`; do not edit. -->

A setting is given by flag, environment variable or TOML file; the first of these that names it wins, else the default
holds. For `data_dir` they are `--data-dir`, `CONTEXTSTORE_DATA_DIR`, and `data_dir = "…"` in the file that `--config`
(or `CONTEXTSTORE_CONFIG`) names. Sizes may carry a unit (`64KiB`, `8MiB`). A bad value stops the start with a sentence
that names where it came from. `contextstore dev` logs for people and stops at once: `log_format` is `console` and
`drain_s` is 0 there. `api_keys` has no flag, because a process list shows flags.

"""


def documentation() -> str:
    return DOCUMENTATION_HEAD + setting_sources.documentation(Settings)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(documentation(), encoding="utf-8")
    else:
        sys.stdout.write(documentation())
