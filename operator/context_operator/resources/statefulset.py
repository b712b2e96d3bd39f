"""The pods: one StatefulSet, whose pods are restarted by the operator and never by Kubernetes' own rolling update."""

import hashlib
import json
from dataclasses import dataclass

from context_operator.resources import names
from context_operator.resources.settings import environment as settings_environment
from context_operator.resources.settings import settings
from context_operator.spec import Cluster, Object

USER_ID = 10001


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided outside the custom resource: how many pods there are now, and which image they run."""

    replicas: int
    image: str


def stateful_set(cluster: Cluster, chosen: Chosen) -> Object:
    """StatefulSet NAME. `OnDelete`: a change of the template touches no pod until the operator deletes it."""
    meta, spec = cluster.metadata, cluster.spec
    retention = spec.storage.retention_policy
    claim: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": spec.storage.size}},
    }
    if spec.storage.storage_class_name is not None:
        claim["storageClassName"] = spec.storage.storage_class_name
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(cluster, meta.name),
        "spec": {
            "replicas": chosen.replicas,
            "serviceName": names.peers(meta.name),
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": retention.when_deleted, "whenScaled": retention.when_scaled},
            "selector": {"matchLabels": names.selector(meta.name)},
            "template": pod_template(cluster, chosen.image),
            "volumeClaimTemplates": [{"metadata": {"name": names.DATA_VOLUME, "labels": names.selector(meta.name)}, "spec": claim}],
        },
    }


def restart_hash(cluster: Cluster, image: str) -> str:
    """The hash of everything a pod is started with that the user chose. What only this version of the operator adds to a pod is left out:
    a newer operator restarts nothing."""
    spec = cluster.spec
    chosen = {
        "image": image,
        "settings": {name: value for name, value in settings(cluster).items() if name not in ("join", "drain_s")},
        "resources": spec.resources,
        "scheduling": [spec.node_selector, spec.tolerations, spec.affinity, spec.topology_spread_constraints, spec.priority_class_name],
        "template": [spec.pod_template.labels, spec.pod_template.annotations, spec.pod_template.service_account_name],
        "pull": [spec.image_pull_policy, spec.image_pull_secrets],
        "restarted_at": cluster.metadata.annotations.get(names.RESTARTED_AT),
    }
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def pod_template(cluster: Cluster, image: str) -> Object:
    """The pods' template, which meets the restricted Pod Security Standard."""
    meta, spec = cluster.metadata, cluster.spec
    template = spec.pod_template
    pod: Object = {
        "serviceAccountName": template.service_account_name or meta.name,
        "automountServiceAccountToken": False,
        # A Service of an unlucky name would otherwise put variables like ours into the environment.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(cluster, image)],
        "volumes": [
            {"name": "keys", "secret": {"secretName": names.keys(meta.name), "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {}},
            *([{"name": "tls", "secret": {"secretName": names.tls(meta.name), "defaultMode": 0o440}}] if spec.is_tls else []),
            *archive_volume(cluster),
        ],
        "topologySpreadConstraints": spec.topology_spread_constraints or spread(meta.name),
        "affinity": spec.affinity or apart(meta.name),
    }
    optional = {
        "imagePullSecrets": spec.image_pull_secrets,
        "nodeSelector": spec.node_selector,
        "tolerations": spec.tolerations,
        "priorityClassName": spec.priority_class_name,
    }
    pod.update({name: value for name, value in optional.items() if value})
    return {
        "metadata": {
            "labels": {**template.labels, **names.labels(meta.name)},
            "annotations": {**template.annotations, names.RESTART_HASH: restart_hash(cluster, image)},
        },
        "spec": pod,
    }


def archive_volume(cluster: Cluster) -> list[Object]:
    """The URI of the archive as a file, so that nodes see a new one. Pods start without it: the archive is never what they wait for."""
    postgres = cluster.spec.archive.postgres
    if postgres is None:
        return []
    items = [{"key": postgres.secret_ref.key, "path": names.ARCHIVE_FILE}]
    return [{"name": "archive", "secret": {"secretName": postgres.secret_ref.name, "items": items, "optional": True, "defaultMode": 0o440}}]


def container(cluster: Cluster, image: str) -> Object:
    meta, spec = cluster.metadata, cluster.spec
    host = f"$(POD_NAME).{names.peers(meta.name)}.$(POD_NAMESPACE).svc"
    fields = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
    environment: list[Object] = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    environment += [
        {"name": "CONTEXTSTORE_NODE_NAME", "value": "$(POD_NAME)"},
        {"name": "CONTEXTSTORE_PEER_ADDRESS", "value": f"{host}:{names.PEER_PORT}"},
        {"name": "CONTEXTSTORE_CLUSTER_ID", "valueFrom": {"configMapKeyRef": {"name": names.identity(meta.name), "key": "clusterId"}}},
        {
            "name": "CONTEXTSTORE_CLUSTER_SECRET",
            "valueFrom": {"secretKeyRef": {"name": names.secrets(meta.name), "key": "cluster-secret"}},
        },
        # The failure zone of the pod's node, where whoever schedules pods copies it onto them (Kubernetes 1.35 does).
        {
            "name": "CONTEXTSTORE_ZONE",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['topology.kubernetes.io/zone']"}},
        },
    ]
    # kubelet asks by address and checks no certificate.
    scheme = {"scheme": "HTTPS"} if spec.is_tls else {}
    environment += settings_environment(cluster)
    ready = {"httpGet": {"path": "/health/ready", "port": "http", **scheme}}
    live = {"httpGet": {"path": "/health/live", "port": "http", **scheme}}
    return {
        "name": names.CONTAINER,
        "image": image,
        **({"imagePullPolicy": spec.image_pull_policy} if spec.image_pull_policy else {}),
        "args": ["serve"],
        "env": environment,
        "ports": [
            {"name": "http", "containerPort": names.CLIENT_PORT, "protocol": "TCP"},
            {"name": "peers", "containerPort": names.PEER_PORT, "protocol": "TCP"},
        ],
        "resources": spec.resources or {"requests": {"cpu": "100m", "memory": "256Mi"}},
        # The replay of a long log and a wait for a cluster both come before "live" is worth asking; half an hour bounds them.
        "startupProbe": {**live, "periodSeconds": 2, "failureThreshold": 900},
        "livenessProbe": {**live, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "readinessProbe": {**ready, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": names.DATA_VOLUME, "mountPath": names.DATA_DIR},
            {"name": "keys", "mountPath": names.KEYS_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            *([{"name": "tls", "mountPath": names.TLS_DIR, "readOnly": True}] if spec.is_tls else []),
            *([{"name": "archive", "mountPath": names.ARCHIVE_DIR, "readOnly": True}] if spec.archive.postgres is not None else []),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def spread(cluster: str) -> list[Object]:
    """Pods as evenly over zones and machines as possible, but rather together than nowhere: a volume may bind a pod to its machine."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.selector(cluster)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def apart(cluster: str) -> Object:
    """Pods rather on different machines."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": names.selector(cluster)}}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}
