"""The custom resources as the operator reads them: parsed once, frozen.

Knows the fields of `crds/`. Does not know Kubernetes objects that are made of them. The API server has validated and defaulted what comes
here; a field of a newer CRD is ignored, so that an older operator does not stumble.
"""

import re
from typing import Any

import msgspec

GROUP, VERSION = "contextstore.dev", "v1alpha1"
FACTOR_DEFAULT_MAX = 3

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as JSON."""


class _Part(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Fields are named in Python's way here and in Kubernetes' way outside."""


class Shards(_Part, frozen=True, rename="camel", kw_only=True):
    count: int = 32
    replication_factor: int | None = None


class RetentionPolicy(_Part, frozen=True, rename="camel", kw_only=True):
    when_deleted: str = "Retain"
    when_scaled: str = "Retain"


class Storage(_Part, frozen=True, rename="camel", kw_only=True):
    size: str = "10Gi"
    storage_class_name: str | None = None
    retention_policy: RetentionPolicy = RetentionPolicy()


class NameRef(_Part, frozen=True, rename="camel", kw_only=True):
    name: str


class Auth(_Part, frozen=True, rename="camel", kw_only=True):
    api_keys_secret_ref: NameRef | None = None


class KeyRef(_Part, frozen=True, rename="camel", kw_only=True):
    name: str
    key: str = "uri"


class Postgres(_Part, frozen=True, rename="camel", kw_only=True):
    secret_ref: KeyRef
    schema: str | None = None
    flush_interval: str | None = None
    batch_size: int | None = None


class Archive(_Part, frozen=True, rename="camel", kw_only=True):
    postgres: Postgres | None = None
    tail_keep: int | None = None


class IssuerRef(_Part, frozen=True, rename="camel", kw_only=True):
    name: str
    kind: str = "Issuer"
    group: str = "cert-manager.io"


class Tls(_Part, frozen=True, rename="camel", kw_only=True):
    mode: str = "Disabled"
    secret_ref: NameRef | None = None
    issuer_ref: IssuerRef | None = None
    hosts: list[str] = []


class Defaults(_Part, frozen=True, rename="camel", kw_only=True):
    token_budget: int | None = None
    trigger_ratio: float | None = None
    target_ratio: float | None = None
    tokenizer: str | None = None
    policy_ref: NameRef | None = None


class Limits(_Part, frozen=True, rename="camel", kw_only=True):
    message_bytes_max: int | None = None
    batch_messages_max: int | None = None
    batch_bytes_max: int | None = None
    metadata_bytes_max: int | None = None
    parts_max: int | None = None
    streams_max: int | None = None
    requests_in_flight_max: int | None = None
    connections_max: int | None = None


class Rebalance(_Part, frozen=True, rename="camel", kw_only=True):
    mode: str = "Auto"
    max_concurrent_moves: int = 4


class ScaleDown(_Part, frozen=True, rename="camel", kw_only=True):
    drain_timeout: str = "30m"


class UpdateStrategy(_Part, frozen=True, rename="camel", kw_only=True):
    type: str = "RollingUpdate"


class Service(_Part, frozen=True, rename="camel", kw_only=True):
    type: str = "ClusterIP"
    annotations: dict[str, str] = {}


class NetworkPolicy(_Part, frozen=True, rename="camel", kw_only=True):
    enabled: bool = True
    clients: list[Object] = []


class Enabled(_Part, frozen=True, rename="camel", kw_only=True):
    enabled: bool = True


class Monitoring(_Part, frozen=True, rename="camel", kw_only=True):
    pod_monitor: bool = False
    prometheus_rule: bool = False
    grafana_dashboard: bool = False


class PodTemplate(_Part, frozen=True, rename="camel", kw_only=True):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    service_account_name: str | None = None
    termination_grace_period_seconds: int = 90


class ClusterSpec(_Part, frozen=True, rename="camel", kw_only=True):
    """`spec` of a ContextCluster."""

    replicas: int = 3
    shards: Shards = Shards()
    image: str | None = None
    version: str | None = None
    image_pull_policy: str | None = None
    image_pull_secrets: list[Object] = []
    storage: Storage = Storage()
    archive: Archive = Archive()
    auth: Auth = Auth()
    tls: Tls = Tls()
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    config: dict[str, str] = {}
    rebalance: Rebalance = Rebalance()
    scale_down: ScaleDown = ScaleDown()
    update_strategy: UpdateStrategy = UpdateStrategy()
    paused: bool = False
    service: Service = Service()
    network_policy: NetworkPolicy = NetworkPolicy()
    pod_disruption_budget: Enabled = Enabled()
    monitoring: Monitoring = Monitoring()
    resources: Object | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[Object] | None = None
    affinity: Object | None = None
    topology_spread_constraints: list[Object] | None = None
    priority_class_name: str | None = None
    pod_template: PodTemplate = PodTemplate()

    @property
    def is_tls(self) -> bool:
        return self.tls.mode != "Disabled"

    @property
    def factor(self) -> int:
        """How many voters each shard is to have."""
        if self.shards.replication_factor is not None:
            return self.shards.replication_factor
        most = min(FACTOR_DEFAULT_MAX, self.replicas)
        return most - 1 + most % 2


class Meta(_Part, frozen=True, rename="camel", kw_only=True):
    """What is needed of `metadata`."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    annotations: dict[str, str] = {}


class Cluster(_Part, frozen=True, rename="camel", kw_only=True):
    """A ContextCluster."""

    metadata: Meta
    spec: ClusterSpec
    status: Object = {}


class PolicySpec(_Part, frozen=True, rename="camel", kw_only=True):
    """`spec` of a ContextPolicy."""

    cluster_ref: NameRef
    strategy: str
    config: Object = {}
    token_budget: int | None = None
    trigger_ratio: float | None = None
    target_ratio: float | None = None
    tokenizer: str | None = None
    default: bool = False

    def body(self) -> Object:
        """What `PUT /v1/policies/{name}` takes."""
        fields = {
            "strategy": self.strategy,
            "config": self.config,
            "token_budget": self.token_budget,
            "trigger_ratio": self.trigger_ratio,
            "target_ratio": self.target_ratio,
            "tokenizer": self.tokenizer,
            "default": self.default,
        }
        return {name: value for name, value in fields.items() if value is not None}


class Policy(_Part, frozen=True, rename="camel", kw_only=True):
    """A ContextPolicy."""

    metadata: Meta
    spec: PolicySpec
    status: Object = {}


def cluster_of(value: Object) -> Cluster:
    """Raises `msgspec.ValidationError` for what no CRD of ours lets through."""
    return msgspec.convert(value, Cluster)


def policy_of(value: Object) -> Policy:
    """As `cluster_of`."""
    return msgspec.convert(value, Policy)


def seconds_of(duration: str) -> int:
    """`1h30m` in seconds; 0 for an empty one."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)([hms])", duration))
