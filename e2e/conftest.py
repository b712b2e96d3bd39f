"""A Kubernetes cluster (`environments.py`) with the image and the chart on it, and clusters of ours."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from environments import ROOT, Environment, Unavailable, chosen
from faults import Faults
from kubernetes_cli import Failed, kubectl, run
from store_cluster import Cluster


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A run takes most of an hour: what fails is told at once, and again at the end."""
    if report.failed:
        print(f"\nFAILED in {report.when}: {report.nodeid}\n{report.longreprtext[-3000:]}", flush=True)


CHART = str(ROOT / "helm" / "contextstore")
NAMESPACE = "apps"


@pytest.fixture(scope="session")
def environment() -> Environment:
    return chosen()


@pytest.fixture(scope="session")
def image(environment: Environment) -> Iterator[str]:
    """The image, on every node of a cluster that the commands speak to."""
    try:
        yield environment.up()
    except Unavailable as error:
        pytest.skip(str(error))
    finally:
        environment.down()


@pytest.fixture(scope="session")
def next_image(image: str, environment: Environment) -> str:
    """A newer version of it."""
    found = environment.next_image()
    if not found:
        pytest.skip("no newer image: set E2E_NEXT_IMAGE to one that the cluster can pull")
    return found


@pytest.fixture(scope="session")
def postgres_image(image: str, environment: Environment) -> str:
    """An image of Postgres, for the archive."""
    found = environment.postgres_image()
    if not found:
        pytest.skip("no image of Postgres: set E2E_POSTGRES_IMAGE to one made as e2e/postgres_pod.py has it")
    return found


@pytest.fixture
def faults(image: str, environment: Environment) -> Faults:
    """What can happen to machines."""
    found = environment.faults()
    if found is None:
        pytest.skip("faults of machines are known for the local Kubernetes and kind; unset KUBECONFIG to run on one")
    return found


def helm(image: str, *command: str, values: tuple[str, ...] = ()) -> None:
    """`helm install` or `upgrade` of the chart, until the operator is ready."""
    repository, _, tag = image.rpartition(":")
    settings = [one for value in (f"image.repository={repository}", f"image.tag={tag}", *values) for one in ("--set", value)]
    run("helm", *command, CHART, "-n", "ctx", "--wait", "--timeout", "2m", *settings, timeout_s=150)


@pytest.fixture(scope="session")
def operator(image: str) -> str:
    """The chart, installed; the namespace of the operator. Both namespaces let in only pods that meet the restricted standard."""
    for name in ("ctx", NAMESPACE):
        kubectl("create", "namespace", name)
        kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    helm(image, "install", "ctx")
    return "ctx"


@pytest.fixture(scope="session")
def shared(operator: str, image: str) -> Cluster:
    """The cluster of README, ready."""
    found = re.search(r"kubectl apply -f - <<< '(\{.*\})'", (ROOT / "README.md").read_text())
    assert found is not None
    example = json.loads(found[1])
    made = Cluster(NAMESPACE, example["metadata"]["name"], image, example["spec"])
    began = time.monotonic()
    made.apply()
    made.wait_ready(3)
    print(f"README's cluster is ready {time.monotonic() - began:.0f} s after kubectl apply")
    return made


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """The cluster that most tests share: three nodes, ready also after a test that failed."""
    if not shared.is_ready(3):
        shared.spec = {"replicas": 3}
        shared.apply()
        shared.wait_ready(3)
    return shared


@pytest.fixture
def another(operator: str, image: str) -> Iterator[Callable[..., Cluster]]:
    """Makes a cluster of the test's own, small; it and its volumes are gone afterwards."""
    made: list[Cluster] = []

    def make(name: str, namespace: str = NAMESPACE, **spec: Any) -> Cluster:
        storage = {"size": "1Gi", "retentionPolicy": {"whenDeleted": "Delete"}, **spec.pop("storage", {})}
        one = Cluster(namespace, name, image, {"replicas": 3, "shards": {"count": 4}, "storage": storage, **spec})
        made.append(one)
        one.apply()
        return one

    yield make
    for one in made:
        try:
            kubectl("-n", one.namespace, "delete", "ctxc", one.name, "--timeout=60s", "--ignore-not-found")
        except Failed as error:
            if "not found" not in str(error):
                raise
