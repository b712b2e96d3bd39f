"""Who may do what to the pods: the disruption budget and the network policy."""

from context_operator.resources import names
from context_operator.spec import Cluster, Object


def disruption_budget(cluster: Cluster, may_lose: int) -> Object:
    """PodDisruptionBudget NAME: so many pods may be evicted now. A pod that is not ready may always go: it keeps nothing up."""
    name = cluster.metadata.name
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(cluster, name),
        "spec": {
            "maxUnavailable": may_lose,
            "selector": {"matchLabels": names.selector(name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(cluster: Cluster) -> Object:
    """NetworkPolicy NAME: clients and the operator reach the API, only pods of the cluster the port between nodes."""
    name, spec = cluster.metadata.name, cluster.spec.network_policy
    own = {"podSelector": {"matchLabels": names.selector(name)}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": names.MANAGER}}}
    client_rule: Object = {"ports": [{"port": "http", "protocol": "TCP"}]}
    if spec.clients:
        client_rule["from"] = [*spec.clients, own, operator]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(cluster, name),
        "spec": {
            "podSelector": {"matchLabels": names.selector(name)},
            "policyTypes": ["Ingress"],
            "ingress": [client_rule, {"from": [own], "ports": [{"port": "peers", "protocol": "TCP"}]}],
        },
    }
