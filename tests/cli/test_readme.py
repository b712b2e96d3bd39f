"""README holds what it says: its commands work as they stand, and each promise names tests that exist."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

from support.contextstore_process import clean_environment, running_node

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISES = ["H1", "H2", "H3", "H4", "H5", "H6", "W1", "W2", "W3", "W4", "W5", "W6", "S1", "S2", "S3", "S4", "S5"]


def next_three_commands() -> list[str]:
    block = re.search(r"## The next three commands.*?```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    return block[1].strip().splitlines()


def shell(command: str, timeout_s: float) -> str:
    """What a command prints; one that goes on by itself is ended after a while, as Ctrl-C would."""
    words = ["timeout", "--preserve-status", "--signal=INT", str(timeout_s), "sh", "-c", f"exec {command}"]
    return subprocess.run(words, capture_output=True, text=True, env=clean_environment(), check=False, timeout=60).stdout


def test_the_next_three_commands_work_as_they_stand(tmp_path: Path) -> None:
    commands = next_three_commands()
    assert len(commands) == 3
    with running_node(tmp_path) as node:
        append, window, stream = (command.replace("http://127.0.0.1:4000", node.url) for command in commands)
        assert node.url in append and node.url in window and node.url in stream
        assert json.loads(shell(append, 20))["seq"] == 1
        assert json.loads(shell(window, 20))["messages"][0]["parts"] == [{"type": "text", "text": "Where is my order?"}]
        said = shell(stream, 2)
        assert "event: message" in said and "Where is my order?" in said and "event: context" in said


def promise_rows() -> list[tuple[str, list[str]]]:
    rows = re.findall(r"^\| ([HWS]\d) \|[^|]*\| (.*) \|$", README, re.MULTILINE)
    return [(number, re.findall(r"`(tests/[^`]+)`", cell)) for number, cell in rows]


def test_every_promise_has_its_row() -> None:
    assert [number for number, _ in promise_rows()] == PROMISES
    assert all(tests for number, tests in promise_rows() if number != "H6"), "only what there is not yet has no test"


@pytest.mark.parametrize(("number", "tests"), promise_rows())
def test_the_tests_that_a_promise_names_exist(number: str, tests: list[str]) -> None:
    for test in tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        names |= {
            target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
        }
        assert name in names, f"{number} names {test}, which is not there"


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", README)) <= targets


def test_links_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
