"""The custom resources and what is made of them: the chart's are the same, nodes understand what they get, pods are restricted."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from context_node.api_keys import KeyRing, Scope, create_key
from context_node.settings import Settings
from context_operator.plan import Desired, Observed
from context_operator.resources import access, identity, monitors, names, services, settings, statefulset, tls
from context_operator.spec import ClusterSpec, cluster_of, policy_of, seconds_of
from context_operator.status import QUORUM_RUNBOOK, Pass, status_of
from context_operator.steps import Decision, Wait

ROOT = Path(__file__).resolve().parents[2]
CRDS = sorted((ROOT / "crds").glob("*.yaml"))


def cluster(spec: dict[str, Any] | None = None, **metadata: Any) -> Any:
    meta = {"name": "demo", "namespace": "apps", "uid": "u", "generation": 3, **metadata}
    return cluster_of({"metadata": meta, "spec": spec or {}})


def schema_of(path: Path) -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_the_chart_carries_the_same_crds() -> None:
    carried = sorted((ROOT / "helm/contextstore/crds-files").glob("*.yaml"))
    assert [path.name for path in carried] == [path.name for path in CRDS]
    assert [path.read_bytes() for path in carried] == [path.read_bytes() for path in CRDS]


@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.name)
def test_every_field_of_a_spec_is_described(path: Path) -> None:
    def walk(at: str, schema: dict[str, Any]) -> list[str]:
        found = [] if "description" in schema or at.endswith(".name") else [at]
        for name, inner in (schema.get("properties") or {}).items():
            found += walk(f"{at}.{name}", inner)
        return found

    assert walk("spec", schema_of(path)["properties"]["spec"]) == []


def test_the_operator_reads_the_fields_and_defaults_of_the_crd() -> None:
    def defaults(schema: dict[str, Any]) -> Any:
        if schema.get("default") == {}:
            known = {name: defaults(inner) for name, inner in schema.get("properties", {}).items()}
            return {name: value for name, value in known.items() if value is not None}
        return schema.get("default")

    schema = schema_of(ROOT / "crds/contextstore.dev_contextclusters.yaml")["properties"]["spec"]
    assert set(schema["properties"]) == set(ClusterSpec.__struct_encode_fields__)
    assert cluster(defaults({**schema, "default": {}})).spec == cluster({}).spec


def test_nodes_know_every_setting_that_they_are_given() -> None:
    spec = {
        "defaults": {"tokenBudget": 5, "policyRef": {"name": "p"}},
        "limits": {"partsMax": 9, "streamsMax": 1},
        "config": {"wal_bytes_max": "8MiB"},
    }
    given = settings.settings(cluster(spec))
    assert set(given) <= {field.name for field in dataclasses.fields(Settings)}
    assert given["parts_max"] == "9"
    assert given["default_policy"] == "p"
    assert given["wal_bytes_max"] == "8MiB"


def test_what_the_operator_sets_itself_is_refused_as_config() -> None:
    rules = schema_of(ROOT / "crds/contextstore.dev_contextclusters.yaml")["properties"]["spec"]["properties"]["config"][
        "x-kubernetes-validations"
    ]
    text = rules[1]["rule"]
    ours = set(settings.settings(cluster())) | {"node_name", "peer_address", "cluster_id", "cluster_secret", "zone", "api_keys", "open"}
    assert all(f"'{name}'" in text for name in ours)


def test_pods_meet_the_restricted_standard() -> None:
    pod = statefulset.pod_template(cluster(), "image:1")["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_restart_hash_follows_what_the_user_changes_and_nothing_else() -> None:
    plain = statefulset.restart_hash(cluster(), "image:1")
    assert plain == statefulset.restart_hash(cluster({"replicas": 5, "paused": True, "scaleDown": {"drainTimeout": "1h"}}), "image:1")
    assert plain == statefulset.restart_hash(cluster({"rebalance": {"mode": "Manual"}}, generation=9), "image:1")
    changed = [
        statefulset.restart_hash(cluster(), "image:2"),
        statefulset.restart_hash(cluster({"limits": {"partsMax": 3}}), "image:1"),
        statefulset.restart_hash(cluster({"resources": {"limits": {"cpu": "1"}}}), "image:1"),
        statefulset.restart_hash(cluster(annotations={names.RESTARTED_AT: "now"}), "image:1"),
    ]
    assert len({plain, *changed}) == 5


def test_with_tls_nodes_are_asked_by_https_everywhere_and_without_it_nothing_changes() -> None:
    plain, secure = cluster(), cluster({"tls": {"mode": "SelfSigned"}})
    assert {name for name in settings.settings(secure) if name not in settings.settings(plain)} == {
        "tls_cert_file",
        "tls_key_file",
        "tls_ca_file",
    }
    container = statefulset.pod_template(secure, "i")["spec"]["containers"][0]
    assert {container[probe]["httpGet"]["scheme"] for probe in ("readinessProbe", "livenessProbe", "startupProbe")} == {"HTTPS"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert all(path.startswith(mounts["tls"]) for name, path in settings.settings(secure).items() if name.startswith("tls_"))
    assert monitors.pod_monitor(secure)["spec"]["podMetricsEndpoints"][0]["scheme"] == "https"
    assert "https" not in json.dumps(statefulset.pod_template(plain, "i")).lower()
    # What was mounted before TLS existed restarts nothing.
    assert statefulset.restart_hash(plain, "i") == statefulset.restart_hash(cluster({"tls": {"mode": "Disabled"}}), "i")


def test_the_uri_of_an_archive_is_a_file_that_may_change_and_may_be_missing() -> None:
    asked = {"postgres": {"secretRef": {"name": "pg", "key": "dsn"}, "flushInterval": "5s", "batchSize": 7}, "tailKeep": 0}
    with_archive = cluster({"archive": asked})
    given = settings.settings(with_archive)
    assert (given["archive_flush_s"], given["archive_batch_messages"], given["archive_tail_keep"]) == ("5", "7", "0")
    pod = statefulset.pod_template(with_archive, "i")["spec"]
    volume = next(one for one in pod["volumes"] if one["name"] == "archive")
    assert volume["secret"]["optional"] is True
    mount = next(one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "archive")
    assert given["archive_postgres_file"] == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
    assert set(given) <= {field.name for field in dataclasses.fields(Settings)}
    assert not [name for name in settings.settings(cluster()) if name.startswith("archive")]


def test_a_certificate_of_cert_manager_names_every_pod_and_the_service() -> None:
    body = tls.certificate(
        cluster({"tls": {"mode": "CertManager", "issuerRef": {"name": "ca", "kind": "ClusterIssuer"}, "hosts": ["x.y"]}})
    )
    assert set(tls.hosts_needed(cluster())) | {"x.y"} <= set(body["spec"]["dnsNames"])
    assert body["spec"]["issuerRef"] == {"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    host = names.host("demo", "apps", 2)
    assert any(one.startswith("*.") and host.partition(".")[2] == one[2:] for one in tls.hosts_needed(cluster()))


def test_every_name_and_selector_holds_the_clusters_name() -> None:
    one, other = cluster(), cluster(name="demo-2")
    for build in (services.peers, services.client, access.network_policy):
        assert build(one)["metadata"]["name"] != build(other)["metadata"]["name"]
    assert services.client(one)["spec"]["selector"] != services.client(other)["spec"]["selector"]
    assert names.ordinal_of("demo", "demo-2-0") is None
    assert names.ordinal_of("demo-2", "demo-2-0") == 0


def test_what_is_kept_has_no_owner_and_what_goes_with_the_cluster_has_one() -> None:
    kept, gone = cluster(), cluster({"storage": {"retentionPolicy": {"whenDeleted": "Delete"}}})
    for build in (
        lambda c: identity.identity(c, "a" * 32, False),
        lambda c: identity.secrets(c, "s", "o"),
        lambda c: identity.api_key(c, "k"),
    ):
        assert "ownerReferences" not in build(kept)["metadata"]
        assert "ownerReferences" in build(gone)["metadata"]
    assert "ownerReferences" in services.client(kept)["metadata"]


def test_a_node_takes_the_keys_that_the_operator_renders(tmp_path: Path) -> None:
    made = create_key(tmp_path / "mine.jsonl", "app", {Scope.READ})
    plain = "cs_second_" + "x" * 30
    lines = identity.key_lines({"keys.jsonl": (tmp_path / "mine.jsonl").read_text(), "backend": f"{plain}=read+write\n"})
    lines.append(identity.key_line("operator", "cs_operator_" + "y" * 40 + "=read+write+admin"))
    path = tmp_path / "keys.jsonl"
    path.write_text("\n".join(lines) + "\n")
    ring = KeyRing(path)
    for key, scopes in ((made.plain, {"read"}), (plain, {"read", "write"}), ("cs_operator_" + "y" * 40, {"read", "write", "admin"})):
        found = ring.verify(f"Bearer {key}")
        assert found is not None
        assert {str(scope) for scope in found.scopes} == scopes
    assert plain not in path.read_text()


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"a": "hunter2-hunter2"}, "Entry a is no key"),
        ({"a": "cs_x_short"}, "Entry a is no key"),
        ({"a": "cs_x_" + "y" * 30 + "=root"}, "'root'"),
        ({"keys.jsonl": "{}"}, "Line 1"),
        ({"keys.jsonl": "not json"}, "Line 1"),
        ({"a": "cs_x_" + "y" * 30, "b": "cs_x_" + "z" * 30}, "twice"),
        ({"a": "cs_operator_" + "y" * 30}, "operator's own"),
    ],
)
def test_keys_that_are_none_are_named_and_not_repeated(entries: dict[str, str], says: str) -> None:
    with pytest.raises(identity.BadKeys, match=says) as refusal:
        identity.key_lines(entries)
    assert all(len(text) < 6 or text not in str(refusal.value) for text in entries.values() if text != "not json")


def test_every_condition_is_there_from_the_first_pass_and_keeps_its_time() -> None:
    observed = Observed("", False, None, (), None, {})
    made = Pass(Decision(Wait(), "Bootstrap", sentence="Pods are made."), "image:1")
    first = status_of(cluster(), Desired(3, 3, "h"), observed, made, "2026-01-01T00:00:00Z")
    kinds = {one["type"] for one in first["conditions"]}
    assert kinds == {
        "Ready",
        "Available",
        "Progressing",
        "Degraded",
        "Rebalancing",
        "ScaleAllowed",
        "ArchiveHealthy",
        "StorageResized",
        "Paused",
    }
    again = cluster_of({"metadata": {"name": "demo", "namespace": "apps"}, "spec": {}, "status": first})
    second = status_of(again, Desired(3, 3, "h"), observed, made, "2026-01-02T00:00:00Z")
    assert {one["lastTransitionTime"] for one in second["conditions"]} == {"2026-01-01T00:00:00Z"}
    assert second["operation"]["startedAt"] == "2026-01-01T00:00:00Z"


def test_durations_and_policies_are_read() -> None:
    assert (seconds_of("1h30m"), seconds_of("45s"), seconds_of("")) == (5400, 45, 0)
    policy = policy_of(
        {"metadata": {"name": "p", "namespace": "n"}, "spec": {"clusterRef": {"name": "demo"}, "strategy": "last_n", "tokenBudget": 5}}
    )
    assert policy.spec.body() == {"strategy": "last_n", "config": {}, "token_budget": 5, "default": False}


def test_the_chart_can_be_linted_and_rendered() -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not installed; make e2e builds one and installs the chart with it")
    chart = str(ROOT / "helm/contextstore")
    subprocess.run([helm, "lint", "--strict", chart], check=True, capture_output=True)
    words = [helm, "template", "ctx", chart, "--set", "watchNamespaces={a,b},dashboard.enabled=true"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    rendered = [one for one in yaml.safe_load_all(done.stdout) if one]
    assert {one["kind"] for one in rendered} >= {"CustomResourceDefinition", "Deployment", "Role", "RoleBinding", "ServiceAccount"}
    assert not [one for one in rendered if one["kind"].startswith("ClusterRole")]
    shown = next(one for one in rendered if one["kind"] == "ConfigMap")
    assert json.loads(shown["data"]["contextstore-overview.json"])["title"] == "Context Store"


def test_every_alert_has_its_runbook() -> None:
    headings = [line.removeprefix("## ").lower().replace(" ", "-") for line in (ROOT / "docs/runbooks.md").read_text().splitlines()]
    rules = monitors.rules(cluster())["spec"]["groups"][0]["rules"]
    named = [rule["annotations"]["runbook_url"] for rule in rules] + [QUORUM_RUNBOOK]
    assert [url for url in named if url.partition("#")[2] not in headings] == []


def test_values_and_their_schema_name_the_same_things() -> None:
    values = yaml.safe_load((ROOT / "helm/contextstore/values.yaml").read_text())
    schema = json.loads((ROOT / "helm/contextstore/values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, inner in schema["properties"].items():
        if inner.get("properties"):
            assert set(values[name]) == set(inner["properties"])


def test_the_page_of_all_fields_is_that_of_the_crds() -> None:
    spec = importlib.util.spec_from_file_location("resource_docs", ROOT / "tools/resource_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/resources.md").read_text() == module.document(), "run `make docs-settings`"
