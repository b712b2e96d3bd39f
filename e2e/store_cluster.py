"""A ContextCluster of a test: what a user does with it, and app pods that talk to it and are judged."""

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import judge
from kubernetes_cli import apply, condition, get, kubectl, until

LOAD = Path(__file__).resolve().parent / "load.py"
ASK = """
import json, os, sys, urllib.error, urllib.request, ssl
method, path, body = json.loads(sys.argv[1])
tls = os.environ.get("CONTEXTSTORE_TLS_CA_FILE")
context = ssl._create_unverified_context() if tls else None
url = ("https" if tls else "http") + "://127.0.0.1:4000/v1" + path
head = {"Authorization": "Bearer " + sys.argv[2], "Content-Type": "application/json"}
data = None if body is None else json.dumps(body).encode()
try:
    with urllib.request.urlopen(urllib.request.Request(url, data, head, method=method), timeout=60, context=context) as answer:
        print(json.dumps([answer.status, json.loads(answer.read() or "null")]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.loads(error.read() or "null")]))
"""


@dataclass
class Cluster:
    """See the module's docstring."""

    namespace: str
    name: str
    image: str
    spec: dict[str, Any] = field(default_factory=dict)

    # --- the resource ---------------------------------------------------------------------------------------------------

    def apply(self, **changes: Any) -> None:
        self.spec = {**self.spec, **changes}
        body = {"apiVersion": "contextstore.dev/v1alpha1", "kind": "ContextCluster", "metadata": {"name": self.name}, "spec": self.spec}
        apply(body, namespace=self.namespace)

    def scale(self, replicas: int) -> None:
        kubectl("-n", self.namespace, "scale", f"ctxc/{self.name}", f"--replicas={replicas}")

    def annotate(self, what: str) -> None:
        kubectl("-n", self.namespace, "annotate", f"ctxc/{self.name}", f"contextstore.dev/{what}", "--overwrite")

    def get(self) -> dict[str, Any]:
        return get("contextcluster", self.name, self.namespace)

    def is_ready(self, replicas: int) -> bool:
        value = self.get()
        ready = condition(value, "Ready")
        status = value["status"]
        return (
            ready.get("status") == "True"
            and ready["observedGeneration"] == value["metadata"]["generation"]
            and status["nodes"] == f"{replicas}/{replicas}"
            and not status.get("operation")
        )

    def wait_ready(self, replicas: int, deadline_s: float = 240.0) -> None:
        until(f"{self.name} is ready with {replicas} nodes", lambda: self.is_ready(replicas), deadline_s)

    def wait_condition(self, kind: str, status: str, deadline_s: float = 180.0) -> dict[str, Any]:
        """The condition, once it has this status."""

        def found() -> dict[str, Any] | None:
            one = condition(self.get(), kind)
            return one if one.get("status") == status else None

        told: dict[str, Any] = until(f"{kind} of {self.name} is {status}", found, deadline_s)
        return told

    def delete(self) -> None:
        kubectl("-n", self.namespace, "delete", "ctxc", self.name, "--timeout=60s")
        until(f"the pods of {self.name} are gone", lambda: not self.pods())

    # --- pods -----------------------------------------------------------------------------------------------------------

    def pod(self, ordinal: int) -> str:
        return f"{self.name}-{ordinal}"

    def pods(self) -> dict[str, str]:
        """By name the uid of each pod."""
        return self._of_pods(".metadata.uid")

    def machines(self) -> dict[str, str]:
        """By pod the machine that it runs on."""
        return self._of_pods(".spec.nodeName")

    def spread(self, replicas: int) -> dict[str, str]:
        """Have every pod on a machine of its own, which drains and faults before may have undone; by pod the machine."""

        def crowded() -> list[str]:
            at = self.machines()
            return [name for name, machine in at.items() if list(at.values()).count(machine) > 1]

        for _ in range(3 * replicas):
            self.wait_ready(replicas)
            if not (names := crowded()):
                return self.machines()
            uid = self.pods()[names[-1]]
            kubectl("-n", self.namespace, "delete", "pod", names[-1])
            until("the pod is another one", lambda uid=uid, name=names[-1]: self.pods().get(name) not in (None, uid))
        raise AssertionError(f"the pods of {self.name} do not spread: {self.machines()}")

    def _of_pods(self, path: str) -> dict[str, str]:
        shown = f"jsonpath={{range .items[*]}}{{.metadata.name}}={{{path}}} {{end}}"
        text = kubectl("-n", self.namespace, "get", "pods", "-l", f"app.kubernetes.io/instance={self.name}", "-o", shown)
        return dict(one.split("=") for one in text.split())

    @contextmanager
    def one_away_at_most(self) -> Iterator[None]:
        """As the API server tells it, event by event: never are two pods away at once."""
        with PodWatch(self) as watch:
            yield
        print(f"{self.name}: {watch.most} pod away at once at most, {watch.events} events")
        assert watch.events > 0
        assert watch.most <= 1

    def ask(self, method: str, path: str, body: Any = None, ordinal: int = 0, key: str = "") -> tuple[int, Any]:
        """Ask the node of a pod, from inside it, by default with the operator's key."""
        key = key or base64.b64decode(get("secret", f"{self.name}-cluster", self.namespace)["data"]["operator-key"]).decode()
        words = ("python3", "-c", ASK, json.dumps([method, path, body]), key)
        status, value = json.loads(kubectl("-n", self.namespace, "exec", self.pod(ordinal), "-c", "node", "--", *words))
        return status, value

    # --- an app ---------------------------------------------------------------------------------------------------------

    def start_app(self, run_name: str) -> None:
        """An app pod that writes and reads until `stop_app`."""
        is_tls = self.spec.get("tls", {}).get("mode", "Disabled") != "Disabled"
        ref = self.spec.get("auth", {}).get("apiKeysSecretRef", {}).get("name")
        key = {"secretKeyRef": {"name": ref or f"{self.name}-api-key", "key": "app" if ref else "api-key"}}
        container: dict[str, Any] = {
            "name": "app",
            "image": self.image,
            "command": ["python3", "-c", LOAD.read_text()],
            "env": [
                {"name": "URL", "value": f"{'https' if is_tls else 'http'}://{self.name}.{self.namespace}.svc:4000"},
                {"name": "KEY", "valueFrom": key},
                {"name": "RUN", "value": run_name},
            ],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec: dict[str, Any] = {
            "containers": [container],
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            # It is the judge: a machine that is late for a moment must not cost it.
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
        }
        if is_tls:
            container["env"].append({"name": "CA_FILE", "value": "/trust/ca.crt"})
            container["volumeMounts"] = [{"name": "trust", "mountPath": "/trust"}]
            spec["volumes"] = [{"name": "trust", "configMap": {"name": f"{self.name}-ca"}}]
        apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": run_name}, "spec": spec}, namespace=self.namespace)
        until("the app runs", lambda: kubectl("-n", self.namespace, "get", "pod", run_name, "-o", "jsonpath={.status.phase}") == "Running")

    def app_machine(self, run_name: str) -> str:
        return kubectl("-n", self.namespace, "get", "pod", run_name, "-o", "jsonpath={.spec.nodeName}")

    def stop_app(self, run_name: str) -> judge.Told:
        """What the app saw: every answer explained by one order of all operations, or the test fails."""
        kubectl("-n", self.namespace, "exec", run_name, "--", "touch", "/tmp/stop")

        def is_over() -> bool:
            log = kubectl("-n", self.namespace, "logs", run_name, "--tail=5")
            assert "Traceback" not in log, log
            return "HISTORY IS COMPLETE" in log

        until("the app has read everything back", is_over)
        told = judge.judge(kubectl("-n", self.namespace, "exec", run_name, "--", "cat", "/tmp/history"))
        kubectl("-n", self.namespace, "delete", "pod", run_name, "--wait=false")
        print(f"{run_name}: {told}")
        assert told.wrong == []
        assert told.acknowledged >= 200
        return told


class PodWatch:
    """Follows a cluster's pods by `kubectl get --watch` and counts those that are away: none there, leaving, or not ready."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._present: set[str] = set()
        self._expected = set(cluster.pods())
        self._is_complete = False
        self.most = self.events = 0

    def __enter__(self) -> "PodWatch":
        cluster = self._cluster
        words = ["kubectl", "-n", cluster.namespace, "get", "pods", "-l", f"app.kubernetes.io/instance={cluster.name}"]
        self._process = subprocess.Popen([*words, "--watch", "--output-watch-events", "-o", "json"], stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until("the watch has begun", lambda: self._is_complete, 30)
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        decoder, text = json.JSONDecoder(), ""
        for line in self._process.stdout:
            # One object after the other, on one line or on many.
            text = (text + line).lstrip()
            with suppress(json.JSONDecodeError):
                event, end = decoder.raw_decode(text)
                text = text[end:]
                self._take(event["type"], event["object"])

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        self.events += 1
        if kind == "DELETED" or "deletionTimestamp" in meta or condition(pod, "Ready").get("status") != "True":
            self._present.discard(meta["name"])
        else:
            self._present.add(meta["name"])
        self._is_complete = self._is_complete or self._present >= self._expected
        if self._is_complete:
            self.most = max(self.most, len(self._expected - self._present))

    def __exit__(self, *_unused: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)
