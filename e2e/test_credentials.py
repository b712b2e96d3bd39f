"""Keys and certificates: taken up while everything serves, and what cannot be used replaces nothing."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime

from context_operator.certificates import Pair, issue, make_authority
from kubernetes_cli import apply, get, kubectl, until
from store_cluster import Cluster


def secret(name: str, **entries: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": entries}


def certificate_of(pod: str, cluster: Cluster) -> str:
    """What the node shows to clients, as text."""
    code = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 4000)))"
    return kubectl("-n", cluster.namespace, "exec", pod, "-c", "node", "--", "python3", "-c", code).strip()


def test_a_cluster_with_tls_serves_apps_that_trust_its_authority(another: Callable[..., Cluster]) -> None:
    """Mode SelfSigned. Renewal is forced by taking the certificate away; no pod restarts and no app notices."""
    cluster = another("secure", tls={"mode": "SelfSigned"})
    cluster.wait_ready(3)
    assert cluster.get()["status"]["endpoints"]["client"] == f"https://secure.{cluster.namespace}.svc:4000"
    cluster.start_app("private")
    before, shown = cluster.pods(), certificate_of(cluster.pod(1), cluster)
    kubectl("-n", cluster.namespace, "delete", "secret", "secure-node-tls")
    until("a node shows another certificate", lambda: certificate_of(cluster.pod(1), cluster) != shown)
    cluster.wait_ready(3)
    cluster.scale(4)
    cluster.wait_ready(4)
    assert {name: cluster.pods()[name] for name in before} == before
    cluster.stop_app("private")


def test_another_authority_is_taken_up_without_losing_a_connection(another: Callable[..., Cluster]) -> None:
    """Mode Secret: the user's certificate is replaced by one of an authority that nobody knew. A bad one before it changes nothing."""
    hosts = ["own.apps.svc", "*.own-peers.apps.svc"]
    now = datetime.now(UTC)
    old, new = make_authority("old", now), make_authority("new", now)

    def give(authority: Pair, pair: Pair) -> None:
        apply(secret("mine", **{"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}), namespace="apps")

    give(old, issue(old, hosts, now))
    cluster = another("own", tls={"mode": "Secret", "secretRef": {"name": "mine"}})
    cluster.wait_ready(3)
    cluster.start_app("trusting")
    before = cluster.pods()
    give(old, issue(old, ["elsewhere.example"], now))
    told = cluster.wait_condition("Degraded", "True")
    assert "does not name own.apps.svc" in told["message"]
    renewed = issue(new, hosts, now)
    give(new, renewed)
    # Trusted by all, shown by all, trusted alone: three minutes between each.
    until("every node shows it", lambda: all(certificate_of(pod, cluster) == renewed.certificate.strip() for pod in before), 420)
    until(
        "the old authority is forgotten",
        lambda: base64.b64decode(get("secret", "own-node-tls", "apps")["data"]["ca.crt"]).decode().strip() == new.certificate.strip(),
        420,
    )
    cluster.wait_ready(3)
    assert cluster.pods() == before
    cluster.stop_app("trusting")


def test_keys_are_changed_without_a_restart_and_bad_ones_change_nothing(another: Callable[..., Cluster]) -> None:
    one, other = (f"cs_{name}_{'k' * 30}" for name in ("one", "other"))
    apply(secret("keys", app=one), namespace="apps")
    cluster = another("keyed", replicas=1, shards={"count": 2}, auth={"apiKeysSecretRef": {"name": "keys"}})
    cluster.wait_ready(1)
    before = cluster.pods()
    cluster.start_app("keyholder")
    cluster.stop_app("keyholder")

    def status_with(key: str) -> int:
        return cluster.ask("GET", "/contexts", key=key)[0]

    assert status_with(one) == 200
    apply(secret("keys", app="hunter2"), namespace="apps")
    told = cluster.wait_condition("Degraded", "True")
    assert "Entry app is no key" in told["message"]
    assert "hunter2" not in told["message"]
    assert status_with(one) == 200
    apply(secret("keys", app=other), namespace="apps")
    until("the new key works", lambda: status_with(other) == 200)
    assert status_with(one) == 401
    cluster.wait_ready(1)
    assert cluster.pods() == before
