"""How pods are found: a headless Service for themselves, one for clients, and the account they run as."""

from context_operator.resources import names
from context_operator.spec import Cluster, Object

HTTP = {"name": "http", "port": names.CLIENT_PORT, "targetPort": "http", "protocol": "TCP"}


def peers(cluster: Cluster) -> Object:
    """Service NAME-peers. It names pods that are not ready too: nodes have to meet to become so."""
    name = cluster.metadata.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(cluster, names.peers(name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(name),
            "ports": [HTTP, {"name": "peers", "port": names.PEER_PORT, "targetPort": "peers", "protocol": "TCP"}],
        },
    }


def client(cluster: Cluster) -> Object:
    """Service NAME: any ready node answers."""
    name, spec = cluster.metadata.name, cluster.spec.service
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(cluster, name, annotations=spec.annotations),
        "spec": {"type": spec.type, "selector": names.selector(name), "ports": [HTTP]},
    }


def service_account(cluster: Cluster) -> Object:
    """ServiceAccount NAME, without any right: nodes never speak to Kubernetes."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(cluster, cluster.metadata.name),
        "automountServiceAccountToken": False,
    }
