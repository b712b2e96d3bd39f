"""What everything of a cluster is called, and the labels it carries. Every name and selector includes the cluster's name, so that clusters
share a namespace."""

from typing import Any

from context_operator.spec import GROUP, VERSION, Cluster

MANAGER = "contextstore-operator"
CLIENT_PORT, PEER_PORT = 4000, 4001
CONTAINER = "node"
DATA_VOLUME = "data"
DATA_DIR = "/var/lib/contextstore"
KEYS_DIR = "/etc/contextstore/keys"
KEYS_FILE = "keys.jsonl"
ARCHIVE_DIR = "/etc/contextstore/archive"
ARCHIVE_FILE = "uri"
TLS_DIR = "/etc/contextstore/tls"
SINCE = f"{GROUP}/since"
"""Annotation of the nodes' certificate: when it became what it is."""
RESTART_HASH = f"{GROUP}/restart-hash"
"""Annotation of a pod: the hash of what it was started with. Pods are restarted when it differs from the wanted one, and never else."""
REPLACE = f"{GROUP}/replace"
"""Annotation of a cluster: the ordinal of a pod whose volume is to be given up."""
RESTARTED_AT = f"{GROUP}/restartedAt"
"""Annotation of a cluster: any new value restarts its pods, one by one."""
BOOTSTRAPPED = "bootstrapped"


def peers(cluster: str) -> str:
    """The headless Service."""
    return f"{cluster}-peers"


def identity(cluster: str) -> str:
    """The ConfigMap that says which cluster this is. As long as it is there nothing begins anew."""
    return f"{cluster}-identity"


def secrets(cluster: str) -> str:
    """The Secret with what nodes and operator know of each other by."""
    return f"{cluster}-cluster"


def api_key(cluster: str) -> str:
    """The Secret with the key for clients, where the user brings none."""
    return f"{cluster}-api-key"


def keys(cluster: str) -> str:
    """The Secret that the pods mount: hashes of all keys."""
    return f"{cluster}-keys"


def tls(cluster: str) -> str:
    """The Secret with the certificate that the pods mount. Not NAME-tls, which people call their own."""
    return f"{cluster}-node-tls"


def authority(cluster: str) -> str:
    """The ConfigMap with the certificates of the authorities that clients should trust."""
    return f"{cluster}-ca"


def authority_key(cluster: str) -> str:
    """The Secret with the cluster's own authority."""
    return f"{cluster}-ca-key"


def issued(cluster: str) -> str:
    """The Secret that cert-manager writes a certificate to."""
    return f"{cluster}-cert-manager"


def dashboard(cluster: str) -> str:
    """The ConfigMap with Grafana's dashboard."""
    return f"{cluster}-dashboard"


def policies(cluster: str) -> str:
    """The ConfigMap with the names of the policies that came from resources."""
    return f"{cluster}-policies"


def pod(cluster: str, ordinal: int) -> str:
    return f"{cluster}-{ordinal}"


def claim(cluster: str, ordinal: int) -> str:
    """The volume claim of a pod."""
    return f"{DATA_VOLUME}-{cluster}-{ordinal}"


def ordinal_of(cluster: str, name: str) -> int | None:
    """The ordinal of the pod of this name; None if it is none of the cluster's."""
    text = name.removeprefix(f"{cluster}-")
    return int(text) if text != name and text.isascii() and text.isdigit() else None


def host(cluster: str, namespace: str, ordinal: int) -> str:
    """The DNS name of a pod, for any resolver of the cluster."""
    return f"{pod(cluster, ordinal)}.{peers(cluster)}.{namespace}.svc"


def selector(cluster: str) -> dict[str, str]:
    """What selects the pods of a cluster and of no other."""
    return {"app.kubernetes.io/name": "contextstore", "app.kubernetes.io/instance": cluster, "app.kubernetes.io/component": "node"}


def labels(cluster: str) -> dict[str, str]:
    return {**selector(cluster), "app.kubernetes.io/managed-by": MANAGER, "app.kubernetes.io/part-of": "contextstore"}


def metadata(cluster: Cluster, name: str, *, is_owned: bool = True, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """Metadata of an object of the cluster. What is owned goes with the cluster."""
    meta = cluster.metadata
    found: dict[str, Any] = {"name": name, "namespace": meta.namespace, "labels": labels(meta.name)}
    if annotations:
        found["annotations"] = annotations
    if is_owned:
        found["ownerReferences"] = [owner(cluster)]
    return found


def owners(cluster: Cluster, *, is_owned: bool) -> list[dict[str, Any]]:
    """The `ownerReferences` of an object that goes with the cluster, or stays."""
    return [owner(cluster)] if is_owned else []


def owner(cluster: Cluster) -> dict[str, Any]:
    meta = cluster.metadata
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ContextCluster",
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
