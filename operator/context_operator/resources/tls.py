"""TLS of a cluster: what nodes mount, what clients trust, and by which names nodes are known."""

from context_operator.certificates import Pair
from context_operator.resources import names
from context_operator.spec import Cluster, Object


def hosts_needed(cluster: Cluster) -> list[str]:
    """The names that any certificate of the nodes must hold: each pod's, by which nodes dial each other, and the Service's."""
    meta = cluster.metadata
    return [f"{meta.name}.{meta.namespace}.svc", f"*.{names.peers(meta.name)}.{meta.namespace}.svc"]


def hosts(cluster: Cluster) -> list[str]:
    """All names of a certificate that we sign."""
    meta = cluster.metadata
    also = [f"{name}.cluster.local" for name in hosts_needed(cluster)]
    return [*hosts_needed(cluster), *also, f"{meta.name}.{meta.namespace}", meta.name, "localhost", "127.0.0.1", *cluster.spec.tls.hosts]


def secret(cluster: Cluster, pair: Pair, trust: str, since: str) -> Object:
    """Secret NAME-node-tls: what the pods mount. `since` is when it became so."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(cluster, names.tls(cluster.metadata.name), annotations={names.SINCE: since}),
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": trust},
    }


def authority(cluster: Cluster, trust: str) -> Object:
    """ConfigMap NAME-ca: whom clients should trust. Nothing in it is secret."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(cluster, names.authority(cluster.metadata.name)),
        "data": {"ca.crt": trust},
    }


def authority_key(cluster: Cluster, pair: Pair) -> Object:
    """Secret NAME-ca-key: the cluster's own authority, which no pod mounts. To be created and never replaced."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(cluster, names.authority_key(cluster.metadata.name)),
        "stringData": {"ca.crt": pair.certificate, "ca.key": pair.key},
    }


def certificate(cluster: Cluster) -> Object:
    """Certificate NAME of cert-manager, signed by the issuer that the user names."""
    issuer = cluster.spec.tls.issuer_ref
    name = cluster.metadata.name
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": names.metadata(cluster, name),
        "spec": {
            "secretName": names.issued(name),
            "dnsNames": [host for host in hosts(cluster) if host != "127.0.0.1"],
            "usages": ["digital signature", "server auth", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {} if issuer is None else {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
        },
    }
