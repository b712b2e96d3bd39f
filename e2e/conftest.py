"""A Kubernetes cluster with the image and the chart on it: `$KUBECONFIG` if that is set (the image named by `$E2E_IMAGE` must be pullable
there), else the local Kubernetes of e2e/localkube, made for the run and taken down after it."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faults import Faults, LocalkubeFaults
from kubernetes_cli import Failed, apply, condition, get, kubectl, run, until, use

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "localhost/contextstore:dev"
LOCALKUBE = ROOT / "e2e" / "localkube" / "localkube.py"
PACKAGES = (
    "containerd",
    "runc",
    "containernetworking-plugins",
    "debootstrap",
    "buildah",
    "iptables",
    "nftables",
    "conntrack",
    "ethtool",
    "socat",
    "iproute2",
)


def localkube(*arguments: str, timeout_s: float = 1800.0, is_tried: bool = False) -> str:
    done = subprocess.run([sys.executable, str(LOCALKUBE), *arguments], stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    if done.returncode and not is_tried:
        raise Failed(f"localkube {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The image, on every node of a cluster that the commands speak to."""
    if os.environ.get("KUBECONFIG"):
        os.environ.pop("LOCALKUBE_WORK", None)
        yield os.environ.get("E2E_IMAGE", "contextstore:dev")
        return
    if os.geteuid():
        pytest.skip("the local Kubernetes needs root; or set KUBECONFIG to a cluster and E2E_IMAGE to an image that it can pull")
    work = Path(os.environ.setdefault("LOCALKUBE_WORK", str(Path.home() / ".cache" / "localkube")))
    subprocess.run(["make", "-s", "wheel"], cwd=ROOT, check=True)
    try:
        archive = built(work)
        localkube("down", is_tried=True)
        localkube("up", "--nodes", "3")
    except (Failed, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the local Kubernetes could not be made on this machine: {error}")
    try:
        use(localkube("kubeconfig"), str(work / "bin"))
        localkube("load-image", archive)
        yield IMAGE
    finally:
        localkube("down")


def built(work: Path) -> str:
    """Tools, base image and our image, made where they are not there yet; the archive of the last."""
    if any(shutil.which(tool) is None for tool in ("containerd", "buildah", "debootstrap", "nft")):
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    work.mkdir(parents=True, exist_ok=True)
    localkube("build")
    localkube("base-image")
    dockerfile = work / "Dockerfile.contextstore"
    # No Rust there: the builder's stage only hands on the wheel.
    text = (ROOT / "Dockerfile").read_text()
    for name, value in (("BUILDER", "docker.io/library/python:3.11-slim-bookworm"), ("WHEEL", "given")):
        text = re.sub(rf"^ARG {name}=.*$", f"ARG {name}={value}", text, flags=re.MULTILINE)
    dockerfile.write_text(text)
    return localkube("build-image", "--tag", IMAGE, "--file", str(dockerfile), str(ROOT)).splitlines()[-1]


@pytest.fixture(scope="session")
def operator(image: str) -> str:
    """The chart, installed; the namespace of the operator."""
    repository, _, tag = image.rpartition(":")
    values = ["--set", f"image.repository={repository}", "--set", f"image.tag={tag}"]
    run(
        "helm",
        "install",
        "ctx",
        str(ROOT / "helm" / "contextstore"),
        "-n",
        "ctx",
        "--create-namespace",
        "--wait",
        "--timeout",
        "2m",
        *values,
    )
    return "ctx"


@dataclass
class Cluster:
    """A ContextCluster of the test, and an app pod that talks to it."""

    namespace: str
    name: str
    image: str
    spec: dict[str, Any] = field(default_factory=dict)

    def apply(self, **changes: Any) -> None:
        self.spec = {**self.spec, **changes}
        body = {"apiVersion": "contextstore.dev/v1alpha1", "kind": "ContextCluster", "metadata": {"name": self.name}, "spec": self.spec}
        apply(body, namespace=self.namespace)

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

    def pods(self) -> dict[str, str]:
        """By name the uid of each pod."""
        text = kubectl(
            "-n",
            self.namespace,
            "get",
            "pods",
            "-l",
            f"app.kubernetes.io/instance={self.name}",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}={.metadata.uid} {end}",
        )
        return dict(one.split("=") for one in text.split())

    def start_app(self, run_name: str) -> None:
        """An app pod that writes and reads until `stop_app`."""
        secret = get("secret", f"{self.name}-api-key", self.namespace)
        key = base64.b64decode(secret["data"]["api-key"]).decode()
        script = (ROOT / "e2e" / "load.py").read_text()
        variables = {"URL": f"http://{self.name}:4000", "KEY": key, "RUN": run_name}
        container = {
            "name": "app",
            "image": self.image,
            "command": ["python3", "-c", script],
            "env": [{"name": name, "value": value} for name, value in variables.items()],
        }
        spec = {
            "containers": [container],
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            # It is the judge: a machine that is late for a moment must not cost it.
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
        }
        apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": run_name}, "spec": spec}, namespace=self.namespace)
        until("the app runs", lambda: kubectl("-n", self.namespace, "get", "pod", run_name, "-o", "jsonpath={.status.phase}") == "Running")

    def stop_app(self, run_name: str) -> dict[str, Any]:
        """What the app found: nothing wrong, or the test fails."""
        kubectl("-n", self.namespace, "exec", run_name, "--", "touch", "/tmp/stop")

        def result() -> str:
            log = kubectl("-n", self.namespace, "logs", run_name)
            return next((line for line in log.splitlines() if line.startswith("RESULT ")), "")

        told: dict[str, Any] = json.loads(until("the app has read everything back", result).removeprefix("RESULT "))
        kubectl("-n", self.namespace, "delete", "pod", run_name, "--wait=false")
        print(f"{run_name}: {told['acknowledged']} acknowledged, slowest {told['slowest_s']} s")
        assert told["wrong"] == []
        assert told["acknowledged"] >= 200
        return told


@pytest.fixture(scope="session")
def cluster(operator: str, image: str) -> Cluster:
    """Three nodes, ready."""
    kubectl("create", "namespace", "apps")
    made = Cluster("apps", "demo", image, {"replicas": 3, "shards": {"count": 8}, "storage": {"size": "1Gi"}})
    made.apply()
    made.wait_ready(3)
    return made


@pytest.fixture
def faults() -> Faults:
    """What can happen to machines."""
    if "LOCALKUBE_WORK" not in os.environ:
        pytest.skip("faults of machines are known for the local Kubernetes only; unset KUBECONFIG to run on it")
    return LocalkubeFaults()
