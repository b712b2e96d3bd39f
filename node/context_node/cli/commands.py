"""The commands themselves: their options, their help, and which part does the work.

Knows click. The heavy parts (the node, HTTP) are imported where a command needs them, so that `--help` and `keys` stay quick.
"""

import platform
import sys
from pathlib import Path

import click

from context_node import __version__
from context_node.cli.archive_commands import restore_command, verify_command
from context_node.cli.command_group import CommandGroup
from context_node.cli.exits import CannotStart
from context_node.cli.keys import keys
from context_node.cli.node_options import interruptible, node_options
from context_node.settings import SettingsError, load_settings, setting_options

DEV_DEFAULTS = {"log_format": "console", "drain_s": 0.0}


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="contextstore", message="%(prog)s %(version)s")
def main() -> None:
    """Context Store keeps whole conversations, and hands out windows of them that fit a model's token budget.

    \b
    Start here:
      contextstore dev                          a node on http://127.0.0.1:4000, data in ./data
      contextstore import chats.jsonl.gz        put your conversations into it
      contextstore COMMAND --help               what a command does, with examples

    \b
    Exit codes: 0 done; 1 something failed while it ran; 2 could not start, or asked wrongly.
    """


@main.command("dev")
@setting_options(defaults=DEV_DEFAULTS)
def dev(flags: dict[str, object], config: Path | None) -> None:
    """Run one node on this machine, for development.

    It needs nothing else: the data is in one directory, and on a loopback address no API key is asked for. It is the same engine as
    `serve`, so what it acknowledges is on the disk; only logs and stopping are made for people. Ctrl-C stops it.

    \b
    Examples:
      contextstore dev
      contextstore dev --port 4100 --data-dir ~/try
      contextstore dev --default-token-budget 4000
      CONTEXTSTORE_PORT=4100 contextstore dev

    Every setting has a flag, also those not listed here: see docs/settings.md.
    """
    run_node(flags, config, DEV_DEFAULTS, is_dev=True)


@main.command("serve")
@setting_options()
def serve(flags: dict[str, object], config: Path | None) -> None:
    """Run one node as a service: JSON logs, API keys, a drain before it stops.

    SIGTERM or SIGINT: /health/ready fails at once, the node serves on for --drain-s, then it refuses, stores everything and exits 0; a
    second signal exits at once (nothing acknowledged is lost). SIGHUP reads the API keys again.

    \b
    Examples:
      contextstore keys create --name my-app --api-keys-file /etc/contextstore/keys.jsonl
      contextstore serve --host 0.0.0.0 --api-keys-file /etc/contextstore/keys.jsonl --data-dir /var/lib/contextstore
      contextstore serve --config /etc/contextstore.toml

    Every setting has a flag, also those not listed here: see docs/settings.md.
    """
    run_node(flags, config, {}, is_dev=False)


def run_node(flags: dict[str, object], config: Path | None, defaults: dict[str, object], *, is_dev: bool) -> None:
    """Load the settings and run until a signal; ends the process with the node's exit code."""
    try:
        loaded = load_settings(flags=flags, config=config, defaults=defaults)
    except SettingsError as error:
        raise CannotStart("\n".join(error.problems)) from error
    from context_node.cli.node_process import run_process

    sys.exit(run_process(loaded.settings, warnings=loaded.warnings, is_dev=is_dev))


@main.command("import")
@click.argument("file", metavar="FILE")
@node_options
@click.option("--prefix", default="", metavar="TEXT", help="Put this before every id.")
@click.option(
    "--token-budget",
    type=click.IntRange(1, 10_000_000),
    metavar="TOKENS",
    help="Budget of every context; else the line's own, else the node's default.",
)
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Conversations imported beside each other.")
@click.option("--batch", type=click.IntRange(1, 1000), default=100, show_default=True, help="Most messages of one append.")
@click.option("--quiet", is_flag=True, help="No progress.")
def import_command(
    file: str, url: str, key: str | None, prefix: str, token_budget: int | None, concurrency: int, batch: int, quiet: bool
) -> None:
    """Put conversations from a JSON Lines file into a node. FILE may be gzipped; `-` is standard input.

    A line is one conversation, its messages as OpenAI's chat API has them or with parts:

    \b
      {"id": "chat-1", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
      {"id": "chat-2", "messages": [{"role": "user", "parts": [{"type": "text", "text": "Hi"}]}], "token_budget": 4000}

    A line may also carry token_budget, trigger_ratio, target_ratio, policy, tokenizer and metadata, as `export` writes them.

    It may be repeated at any time: what is there already is left alone, so after an interruption, or for lines that failed and were
    mended, run the same command again. A line that fails is reported with its number and the others go on; the exit code is then 1.

    \b
    Examples:
      contextstore import chats.jsonl
      contextstore import chats.jsonl.gz --token-budget 4000 --prefix archive:
      zcat chats.jsonl.gz | contextstore import - --url http://node:4000
    """
    from context_node.cli.transfers import run_import

    config = {} if token_budget is None else {"token_budget": token_budget}
    interruptible(
        lambda: run_import(file, url, key, prefix=prefix, config=config, concurrency=concurrency, batch=batch, quiet=quiet),
        "Stopped. Run the same command again to go on where it was.",
    )


@main.command("export")
@click.argument("file", metavar="FILE", default="-")
@node_options
@click.option("--prefix", default="", metavar="TEXT", help="Only contexts whose id begins with this.")
@click.option("--resume", is_flag=True, help="Go on behind the last whole line of FILE, after an interruption.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True, help="Contexts fetched beside each other.")
@click.option("--quiet", is_flag=True, help="No progress.")
def export_command(file: str, url: str, key: str | None, prefix: str, resume: bool, concurrency: int, quiet: bool) -> None:
    """Write contexts with their whole histories as JSON Lines, in the order of their ids. Without FILE, or with `-`: to standard output.

    A line is what `import` takes: id, configuration, metadata and all messages. Messages carry seq and inserted_at too, which an import
    leaves to the new store. Deleted contexts (tombstones) are left out. Each line is one moment of its context; the file as a whole is
    not one moment of the store.

    \b
    Examples:
      contextstore export backup.jsonl
      contextstore export backup.jsonl --resume
      contextstore export --prefix user-42: | gzip > user-42.jsonl.gz
      contextstore export | contextstore import - --url http://other:4000
    """
    from context_node.cli.transfers import run_export

    interruptible(
        lambda: run_export(file, url, key, prefix=prefix, resume=resume, concurrency=concurrency, quiet=quiet),
        "Stopped." if file == "-" else "Stopped. Run the same command with --resume to go on.",
    )


main.add_command(restore_command)
main.add_command(verify_command)
main.add_command(keys)


@main.command("version")
def version() -> None:
    """Print the version, and those of the Python and SQLite it runs on."""
    import apsw

    click.echo(f"contextstore {__version__} (Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()})")
