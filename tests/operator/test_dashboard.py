"""The dashboard: it asks for what there is, fits on Grafana's grid, and two clusters' do not overwrite each other."""

import json
import re
from pathlib import Path
from typing import Any

from context_operator.resources import dashboard, monitors
from context_operator.spec import cluster_of

ROOT = Path(__file__).resolve().parents[2]


def cluster(name: str = "demo") -> Any:
    return cluster_of({"metadata": {"name": name, "namespace": "apps", "uid": "u"}, "spec": {}})


def known_metrics() -> set[str]:
    """Those of docs/operations.md and docs/archive.md, which are compared with a node's own in other tests, and the operator's."""
    files = ("docs/operations.md", "docs/archive.md", "operator/context_operator/manager.py")
    text = "".join((ROOT / file).read_text() for file in files)
    return set(re.findall(r"contextstore_[a-z_]+", text))


def queries(shown: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in shown["panels"] for target in panel.get("targets", [])]


def test_every_query_and_alert_asks_for_a_metric_that_exists() -> None:
    alerts = [rule["expr"] for rule in monitors.rules(cluster())["spec"]["groups"][0]["rules"]]
    asked = {name for text in (*queries(dashboard.dashboard()), *alerts) for name in re.findall(r"contextstore_[a-z_]+", text)}
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= known_metrics()


def test_brackets_are_closed() -> None:
    for text in queries(dashboard.dashboard()):
        for opening, closing in ("()", "[]", "{}"):
            assert text.count(opening) == text.count(closing), text


def test_panels_lie_on_the_grid_without_covering_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    shown = dashboard.dashboard()
    for panel in shown["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in shown["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_chart_carries_the_same_dashboard() -> None:
    carried = (ROOT / "helm/contextstore/dashboards/overview.json").read_text()
    assert carried == dashboard.document(), "run `make docs-settings`"


def test_each_cluster_has_one_of_its_own() -> None:
    one, other = (dashboard.config_map(cluster(name)) for name in ("demo", "demo-2"))
    assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
    shown = [json.loads(next(iter(made["data"].values()))) for made in (one, other)]
    assert len({made["uid"] for made in shown}) == len({made["title"] for made in shown}) == 2
    assert all(len(made["uid"]) <= 40 for made in shown), "Grafana takes 40 characters"
    assert not set(one["data"]) & set(other["data"])
