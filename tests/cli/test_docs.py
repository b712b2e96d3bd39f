"""The documentation says what is so: its examples run, its tables are those of the code."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from context_node.cli.reference import reference
from context_node.http.problems import STATUS_OF
from support.contextstore_process import clean_environment, run_command, running_node

DOCS = Path(__file__).resolve().parents[2] / "docs"
# curl as the examples use it, but failing on an error status; what goes on by itself is ended after a moment.
JSON = {"Content-Type": "application/json"}
PREAMBLE = """
set -eu
curl() {
  case "$*" in *event-stream*) timeout --preserve-status --signal=INT 1 curl --silent "$@" || true ;;
  *) command curl --silent --show-error --fail-with-body "$@" ;; esac
}
"""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_example_of_the_api_page_works_in_order(tmp_path: Path) -> None:
    script = PREAMBLE + "\n".join(blocks(page("api.md"), "sh"))
    with running_node(tmp_path / "data", "--shards", "2") as node:
        script = script.replace("http://127.0.0.1:4000", node.url)
        command = ["bash", "-c", script]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean_environment(), timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        assert "event: context" in result.stdout
        assert json.loads((tmp_path / "chat-1.jsonl").read_text().splitlines()[0])["id"] == "m-1"


def test_every_policy_on_the_policies_page_is_taken(tmp_path: Path) -> None:
    policies = [json.loads(block) for block in blocks(page("policies.md"), "json")]
    assert len(policies) == 5
    named = PREAMBLE + "\n".join(blocks(page("policies.md"), "sh"))
    with running_node(tmp_path / "data", "--shards", "2") as node:
        for body in policies:
            request = urllib.request.Request(f"{node.url}/v1/contexts/chat-1", method="PUT", data=json.dumps(body).encode(), headers=JSON)
            with urllib.request.urlopen(request, timeout=30) as response:
                assert json.loads(response.read())["policy"] == body["policy"]
        command = ["bash", "-c", named.replace("http://127.0.0.1:4000", node.url)]
        assert subprocess.run(command, capture_output=True, env=clean_environment(), timeout=60, check=False).returncode == 0


def test_the_errors_table_has_every_code_with_its_status() -> None:
    table = page("api.md").split("## Errors")[1].split("## ")[0]
    documented = {
        code: int(row[0])
        for row in re.findall(r"^\| (\d{3}) \| ([^|]*) \|", table, re.MULTILINE)
        for code in re.findall("`([a-z_]+)`", row[1])
    }
    assert documented == dict(STATUS_OF)


def test_the_metrics_table_has_every_metric(tmp_path: Path) -> None:
    documented = set(re.findall(r"`(contextstore_\w+)", page("operations.md").split("## Metrics")[1]))
    with running_node(tmp_path, "--shards", "2") as node, urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as response:
        found = set(re.findall(r"^# HELP (contextstore_\w+)", response.read().decode(), re.MULTILINE))
    assert documented == found


def test_the_command_line_page_is_that_of_the_commands() -> None:
    assert page("cli.md") == reference(), "run `python -m context_node.cli.reference docs/cli.md`"


@pytest.mark.parametrize("name", sorted(path.name for path in DOCS.glob("*.md")))
def test_a_page_names_no_path_of_somebodys_machine(name: str) -> None:
    assert not re.search(r"/(tmp|home|root|work|Users)/", page(name))


def test_settings_page_is_that_of_the_settings() -> None:
    from context_node.settings import documentation

    assert page("settings.md") == documentation(), "run `make docs-settings`"
    assert run_command("serve", "--help").returncode == 0
