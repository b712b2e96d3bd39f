"""The commands that read an archive: their options and their help."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from context_node.cli.node_options import interruptible, node_options


def archive_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that reads an archive. The URI is no flag: lists of processes show flags."""
    file = click.option(
        "--archive-postgres-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with the archive's URI; else it is taken from CONTEXTSTORE_ARCHIVE_POSTGRES.",
    )
    schema = click.option(
        "--archive-schema",
        envvar="CONTEXTSTORE_ARCHIVE_SCHEMA",
        default="contextstore",
        show_default=True,
        metavar="NAME",
        help="The schema that holds the archive.",
    )
    return file(schema(command))


@click.command("restore")
@click.option("--from-postgres", is_flag=True, required=True, help="From the archive in Postgres, which is the only source so far.")
@archive_options
@node_options
@click.option("--resume", is_flag=True, help="Go on with a restore that was broken off; the cluster need not be empty.")
@click.option("--no-verify", is_flag=True, help="Do not read everything back and compare it at the end.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=8, show_default=True, help="Contexts restored beside each other.")
@click.option("--quiet", is_flag=True, help="No progress.")
def restore_command(
    from_postgres: bool,
    archive_postgres_file: Path | None,
    archive_schema: str,
    url: str,
    key: str | None,
    resume: bool,
    no_verify: bool,
    concurrency: int,
    quiet: bool,
) -> None:
    """Rebuild a cluster from its archive: every context as it was when it was last archived, byte for byte.

    For a cluster that was lost. Start a new, empty one and give any of its nodes as --url, with a key of scope admin. Histories, windows,
    pins, summaries, message ids, metadata, versions, tombstones and named policies come back; idempotency keys do not. A context takes no
    writes and has no window until it is whole.

    The new cluster archives into a schema of its own: while it runs, give it another --archive-schema than this command, or rename the
    old schema first (ALTER SCHEMA contextstore RENAME TO before).

    It may be broken off at any time: the same command with --resume goes on. A context whose id another context has is left alone and
    listed, the others go on; the exit code is then 1.

    \b
    Examples:
      contextstore restore --from-postgres --archive-postgres-file /etc/contextstore/archive-uri --archive-schema before
      contextstore restore --from-postgres --url http://node:4000 --resume
    """
    from context_node.cli.archives import run_restore

    interruptible(
        lambda: run_restore(
            archive_postgres_file, archive_schema, url, key, resume=resume, verify=not no_verify, concurrency=concurrency, quiet=quiet
        ),
        "Stopped. Run the same command with --resume to go on.",
    )


@click.command("verify-archive")
@archive_options
@node_options
@click.option("--context-prefix", default="", metavar="TEXT", help="Only contexts whose id begins with this.")
@click.option("--strict", is_flag=True, help="What is not archived yet counts as a difference too.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=8, show_default=True, help="Contexts compared beside each other.")
@click.option("--quiet", is_flag=True, help="No progress.")
def verify_command(
    archive_postgres_file: Path | None,
    archive_schema: str,
    url: str,
    key: str | None,
    context_prefix: str,
    strict: bool,
    concurrency: int,
    quiet: bool,
) -> None:
    """Compare a cluster with its archive, message by message. Changes nothing; both may be in use meanwhile.

    \b
    Found are:
      missing            messages that the archive had confirmed and does not have
      differs            messages that are not the same, byte for byte
      left over          what is archived of contexts that the cluster does not have
      not archived yet   messages that wait to be archived; no difference, unless --strict
      unreadable         histories that the cluster does not give

    Messages that were trimmed from the nodes are read from the archive by the cluster too: for those it finds holes only. The exit code
    is 0 if there is no difference, else 1.

    \b
    Examples:
      contextstore verify-archive --archive-postgres-file /etc/contextstore/archive-uri
      contextstore verify-archive --url http://node:4000 --context-prefix user-42:
    """
    from context_node.cli.archives import run_verify

    interruptible(
        lambda: run_verify(
            archive_postgres_file, archive_schema, url, key, prefix=context_prefix, strict=strict, concurrency=concurrency, quiet=quiet
        ),
        "Stopped.",
    )
