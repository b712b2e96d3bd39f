"""Where the tests run: the cluster of `$KUBECONFIG`, one of kind where a container engine runs, or the local Kubernetes of e2e/localkube.

Each brings up a cluster that has the image, and says what can happen to its machines (`faults.py`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Protocol

from faults import Faults, KindFaults, LocalkubeFaults
from kubernetes_cli import Failed, run, use
from postgres_pod import image_context

ROOT = Path(__file__).resolve().parent.parent
LOCALKUBE = ROOT / "e2e" / "localkube" / "localkube.py"
NEXT_VERSION = "0.1.1"
PACKAGES = (
    "containerd", "runc", "containernetworking-plugins", "debootstrap", "buildah", "iptables", "nftables", "conntrack", "ethtool", "socat",
    "iproute2",
)  # fmt: skip


class Unavailable(Exception):
    """There is no such cluster here; the message says what is missing."""


class Environment(Protocol):
    """`up` gives the image's name on the cluster; `next_image` that of a newer version, `postgres_image` one made as `postgres_pod.py` has
    it; they are empty if there is none."""

    def up(self) -> str: ...
    def down(self) -> None: ...
    def next_image(self) -> str: ...
    def postgres_image(self) -> str: ...
    def faults(self) -> Faults | None: ...


def chosen() -> Environment:
    """Which of the three it is."""
    if os.environ.get("KUBECONFIG"):
        return Given()
    if (
        shutil.which("kind")
        and shutil.which("docker")
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    ):
        return Kind()
    return Localkube()


class Given:
    """A cluster that is there. It must be able to pull `$E2E_IMAGE`, `$E2E_NEXT_IMAGE` for the test of a rolling upgrade, and
    `$E2E_POSTGRES_IMAGE` for that of the archive."""

    def up(self) -> str:
        return os.environ.get("E2E_IMAGE", "contextstore:dev")

    def down(self) -> None:
        pass

    def next_image(self) -> str:
        return os.environ.get("E2E_NEXT_IMAGE", "")

    def postgres_image(self) -> str:
        return os.environ.get("E2E_POSTGRES_IMAGE", "")

    def faults(self) -> Faults | None:
        return None


class Kind:
    """kind (https://kind.sigs.k8s.io) with a control plane and three workers, each a zone of its own."""

    NAME, IMAGE, NEXT, POSTGRES = "contextstore-e2e", "contextstore:dev", "contextstore:next", "contextstore-postgres:dev"

    def up(self) -> str:
        run("docker", "build", "--tag", self.IMAGE, str(ROOT), timeout_s=1800)
        self.down()
        zones = [{"role": "worker", "labels": {"topology.kubernetes.io/zone": zone}} for zone in "abc"]
        config = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [{"role": "control-plane"}, *zones]}
        run("kind", "create", "cluster", "--name", self.NAME, "--wait", "120s", "--config", "-", stdin=json.dumps(config), timeout_s=600)
        path = Path(run("mktemp", "-d").strip()) / "kubeconfig"
        path.write_text(run("kind", "get", "kubeconfig", "--name", self.NAME))
        use(str(path), str(path.parent))
        run("kind", "load", "docker-image", self.IMAGE, "--name", self.NAME, timeout_s=300)
        return self.IMAGE

    def down(self) -> None:
        run("kind", "delete", "cluster", "--name", self.NAME)

    def next_image(self) -> str:
        run("docker", "build", "--tag", self.NEXT, "-", stdin=next_dockerfile(self.IMAGE), timeout_s=600)
        run("kind", "load", "docker-image", self.NEXT, "--name", self.NAME, timeout_s=300)
        return self.NEXT

    def postgres_image(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            run("docker", "build", "--tag", self.POSTGRES, str(image_context(Path(folder) / "postgres", self.IMAGE)), timeout_s=600)
        run("kind", "load", "docker-image", self.POSTGRES, "--name", self.NAME, timeout_s=300)
        return self.POSTGRES

    def faults(self) -> Faults | None:
        return KindFaults(f"{self.NAME}-control-plane")


class Localkube:
    """The local Kubernetes: made for the run, with tools that are compiled once and kept in `$LOCALKUBE_WORK` (~/.cache/localkube)."""

    IMAGE, NEXT, POSTGRES = "localhost/contextstore:dev", "localhost/contextstore:next", "localhost/contextstore-postgres:dev"

    def up(self) -> str:
        if os.geteuid():
            raise Unavailable("the local Kubernetes needs root; or set KUBECONFIG to a cluster and E2E_IMAGE to an image that it can pull")
        self._work = Path(os.environ.setdefault("LOCALKUBE_WORK", str(Path.home() / ".cache" / "localkube")))
        subprocess.run(["make", "-s", "wheel"], cwd=ROOT, check=True)
        try:
            archive = self._built()
            localkube("down", is_tried=True)
            localkube("up", "--nodes", "3")
        except (Failed, OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"the local Kubernetes could not be made on this machine: {error}") from error
        use(localkube("kubeconfig"), str(self._work / "bin"))
        localkube("load-image", archive)
        return self.IMAGE

    def down(self) -> None:
        localkube("down", is_tried=True)

    def next_image(self) -> str:
        dockerfile = self._work / "Dockerfile.next"
        dockerfile.write_text(next_dockerfile(self.IMAGE))
        folder = self._work / "empty"
        folder.mkdir(exist_ok=True)
        localkube("load-image", localkube("build-image", "--tag", self.NEXT, "--file", str(dockerfile), str(folder)).splitlines()[-1])
        return self.NEXT

    def postgres_image(self) -> str:
        folder = image_context(self._work / "postgres", self.IMAGE)
        built = localkube("build-image", "--tag", self.POSTGRES, "--file", str(folder / "Dockerfile"), str(folder))
        localkube("load-image", built.splitlines()[-1])
        return self.POSTGRES

    def faults(self) -> Faults | None:
        return LocalkubeFaults(localkube)

    def _built(self) -> str:
        """Tools, base image and our image, made where they are not there yet; the archive of the last."""
        if any(shutil.which(tool) is None for tool in ("containerd", "buildah", "debootstrap", "nft")):
            subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
            install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
            subprocess.run(install, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        self._work.mkdir(parents=True, exist_ok=True)
        localkube("build")
        localkube("base-image")
        dockerfile = self._work / "Dockerfile.contextstore"
        # No Rust there: the builder's stage only hands on the wheel.
        text = (ROOT / "Dockerfile").read_text()
        for name, value in (("BUILDER", "docker.io/library/python:3.11-slim-bookworm"), ("WHEEL", "given")):
            text = re.sub(rf"^ARG {name}=.*$", f"ARG {name}={value}", text, flags=re.MULTILINE)
        dockerfile.write_text(text)
        return localkube("build-image", "--tag", self.IMAGE, "--file", str(dockerfile), str(ROOT)).splitlines()[-1]


def localkube(*arguments: str, timeout_s: float = 1800.0, is_tried: bool = False) -> str:
    done = subprocess.run([sys.executable, str(LOCALKUBE), *arguments], stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    if done.returncode and not is_tried:
        raise Failed(f"localkube {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout.strip()


def next_dockerfile(image: str) -> str:
    """The same program under the next version's number, so that the status tells which pods run it."""
    # The metadata is what `contextstore --version` and the nodes' own report read.
    folder = "import importlib.metadata as m; print(m.distribution('contextstore')._path)"
    command = f"sed -i 's/^Version: .*/Version: {NEXT_VERSION}/' $(python3 -c \"{folder}\")/METADATA"
    return f"FROM {image}\nUSER 0\nRUN {command} && contextstore --version | grep -F {NEXT_VERSION}\nUSER 10001:10001\n"
