"""`contextstore keys`: make, list and revoke API keys in a file of hashes.

Knows the commands; what a key is and how the file is kept safe is in `api_keys`. Invariant: the secret is printed once, alone on standard
output, so that a script can take it; everything said about it goes to standard error.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from context_node.api_keys import DEFAULT_SCOPES, KeyFileError, KeyNotFound, Scope, create_key, list_keys, revoke_key
from context_node.cli.exits import CannotStart, WorkFailed


def file_option(command: Callable[..., Any]) -> Callable[..., Any]:
    option = click.option(
        "--api-keys-file",
        "file",
        envvar="CONTEXTSTORE_API_KEYS_FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        required=True,
        help="The file of hashed keys; the node reads it by the setting of the same name. [env: CONTEXTSTORE_API_KEYS_FILE]",
    )
    return option(command)


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of a node.

    A key is `cs_ID_SECRET`. The file keeps only hashes; the secret is shown once. A running node takes up a changed file within a second
    or so.

    \b
    Examples:
      contextstore keys create --name my-app --api-keys-file keys.jsonl
      contextstore keys list --api-keys-file keys.jsonl
      contextstore keys revoke 1f2e3d4c5b6a --api-keys-file keys.jsonl
    """


@keys.command("create")
@click.option("--name", required=True, help="Whose key it is: shown in lists and logs.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it may do; may be given several times. Default: read and write. Named policies need admin.",
)
@file_option
def create(name: str, scopes: tuple[str, ...], file: Path) -> None:
    """Add a key and print it, once.

    \b
    Examples:
      contextstore keys create --name my-app --api-keys-file keys.jsonl
      contextstore keys create --name ops --scope read --scope write --scope admin --api-keys-file keys.jsonl
      KEY=$(contextstore keys create --name ci --scope read --api-keys-file keys.jsonl)
    """
    chosen = [Scope(scope) for scope in scopes] or sorted(DEFAULT_SCOPES)
    try:
        created = create_key(file, name, chosen, random=os.urandom)
    except ValueError as error:
        raise CannotStart(f"{error}.") from error
    except KeyFileError as error:
        raise WorkFailed(f"{error}.") from error
    scopes_text = ", ".join(created.stored.scopes)
    click.echo(f"Key {created.stored.id} for {name} ({scopes_text}) is in {file}. This is the only time that it is shown:", err=True)
    click.echo(created.plain)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@file_option
def list_command(as_json: bool, file: Path) -> None:
    """List the keys with their names and scopes, revoked ones too. Secrets are not kept, so none is shown."""
    try:
        found = list_keys(file)
    except KeyFileError as error:
        raise WorkFailed(f"{error}.") from error
    if as_json:
        for key in found:
            shown = {"id": key.id, "name": key.name, "scopes": key.scopes, "created": key.created, "revoked": key.revoked}
            click.echo(msgspec.json.encode(shown).decode())
        return
    if not found:
        click.echo(f"{file} holds no keys. Make one with `contextstore keys create`.", err=True)
        return
    rows = [("ID", "CREATED", "SCOPES", "STATE", "NAME")]
    rows += [(key.id, key.created, "+".join(key.scopes), "active" if key.active else f"revoked {key.revoked}", key.name) for key in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join([*(row[column].ljust(widths[column]) for column in range(4)), row[4]]))


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@file_option
def revoke(key_id: str, file: Path) -> None:
    """Stop a key from working. ID is what stands between `cs_` and the next `_`; `keys list` shows it.

    \b
    Example:
      contextstore keys revoke 1f2e3d4c5b6a --api-keys-file keys.jsonl
    """
    try:
        revoked = revoke_key(file, key_id)
    except (KeyFileError, KeyNotFound) as error:
        raise WorkFailed(f"{error}.") from error
    click.echo(f"Key {revoked.id} ({revoked.name}) is revoked since {revoked.revoked}.", err=True)
