"""A Kubernetes cluster (`environments.py`) with the image and the chart on it, and clusters of ours."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from environments import ROOT, Environment, Unavailable, chosen
from faults import Faults
from kubernetes_cli import Failed, kubectl, run
from store_cluster import Cluster

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
    run("helm", *command, CHART, "-n", "ctx", "--create-namespace", "--wait", "--timeout", "2m", *settings, timeout_s=150)


@pytest.fixture(scope="session")
def operator(image: str) -> str:
    """The chart, installed; the namespace of the operator."""
    helm(image, "install", "ctx")
    kubectl("create", "namespace", NAMESPACE)
    return "ctx"


@pytest.fixture(scope="session")
def cluster(operator: str, image: str) -> Cluster:
    """Three nodes, ready; most tests share it."""
    made = Cluster(NAMESPACE, "demo", image, {"replicas": 3, "shards": {"count": 8}, "storage": {"size": "1Gi"}})
    made.apply()
    made.wait_ready(3)
    return made


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
