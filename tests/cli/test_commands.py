"""The command line without a node: help, keys, version, commands of other packages."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from context_node import __version__
from context_node.api_keys import KeyRing, Scope
from context_node.cli import command_group, main


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="contextstore", env=env)


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += all_commands(command, (*path, name))
    return found


@pytest.mark.parametrize(("path", "command"), all_commands(main), ids=lambda value: "-".join(value) if isinstance(value, tuple) else "")
def test_every_command_explains_itself(path: tuple[str, ...], command: click.Command) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    if command.params and path not in (("version",), ("keys", "list")):
        assert "xample" in result.output, "an example teaches more than an option's name"


def test_help_and_version_need_no_heavy_part() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("dev", "serve", "import", "export", "keys", "version"):
        assert command in result.output
    assert run("--version").output == f"contextstore {__version__}\n"
    assert run("version").output.startswith(f"contextstore {__version__} (Python 3.")


def test_a_key_is_printed_once_alone_and_kept_as_a_hash(tmp_path: Path) -> None:
    """S5."""
    file = str(tmp_path / "keys.jsonl")
    made = run("keys", "create", "--name", "my app", "--scope", "read", "--scope", "admin", "--api-keys-file", file)
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert key.startswith("cs_") and " " not in key
    assert key.split("_", 2)[2] not in Path(file).read_text()
    identity = KeyRing(Path(file)).verify_key(key)
    assert identity is not None and identity.scopes == {Scope.READ, Scope.ADMIN} and identity.name == "my app"


def test_keys_are_listed_and_revoked(tmp_path: Path) -> None:
    env = {"CONTEXTSTORE_API_KEYS_FILE": str(tmp_path / "keys.jsonl")}
    assert "holds no keys" in run("keys", "list", env=env).stderr
    key = run("keys", "create", "--name", "one", env=env).stdout.strip()
    key_id = key.split("_")[1]
    assert run("keys", "revoke", key_id, env=env).exit_code == 0
    run("keys", "create", "--name", "two", env=env)
    table = run("keys", "list", env=env).stdout
    assert key_id in table and "revoked 2" in table and "active" in table and "read+write" in table
    assert key.split("_", 2)[2] not in table
    rows = [json.loads(line) for line in run("keys", "list", "--json", env=env).stdout.splitlines()]
    assert [(row["name"], row["revoked"] is None) for row in rows] == [("one", False), ("two", True)]
    assert KeyRing(tmp_path / "keys.jsonl").verify_key(key) is None


def test_keys_that_cannot_be_changed_say_why(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    missing = run("keys", "revoke", "000000", "--api-keys-file", str(file))
    assert missing.exit_code == 1 and "no key with the id" in missing.output
    file.write_text("{}\n")
    broken = run("keys", "create", "--name", "a", "--api-keys-file", str(file))
    assert broken.exit_code == 1 and "line 1" in broken.output
    nameless = run("keys", "create", "--name", "", "--api-keys-file", str(tmp_path / "other.jsonl"))
    assert nameless.exit_code == 2 and "1 to 128" in nameless.output
    assert run("keys", "create", "--name", "a").exit_code == 2


def test_an_unknown_command_or_option_is_exit_code_2() -> None:
    assert run("sreve").exit_code == 2
    assert run("dev", "--prot", "1").exit_code == 2
    assert run("import").exit_code == 2


@click.command("cluster")
def cluster() -> None:
    """Commands of another package."""
    click.echo("from elsewhere")


def test_other_packages_add_commands_and_hide_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        "cluster": EntryPoint("cluster", f"{__name__}:cluster", command_group.ENTRY_POINT_GROUP),
        "dev": EntryPoint("dev", "nowhere:dev", command_group.ENTRY_POINT_GROUP),
        "broken": EntryPoint("broken", "nowhere:broken", command_group.ENTRY_POINT_GROUP),
    }
    monkeypatch.setattr(command_group, "added", lambda: entries)
    monkeypatch.setattr(EntryPoint, "load", lambda entry: cluster if entry.name == "cluster" else __import__("nowhere"))
    assert run("cluster").output == "from elsewhere\n"
    assert "Run one node on this machine" in run("dev", "--help").output
    broken = run("broken", "--any", "thing")
    assert broken.exit_code == 1 and "cannot be loaded: ModuleNotFoundError" in broken.output
    listed = run("--help").output
    assert "cluster" in listed and "(cannot be loaded)" in listed
