"""What `import` and `export` do around their work: open files, connect, show progress, sum up, and choose the exit code."""

import gzip
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import click

from context_node.cli.client import GaveUp, Refused, connected
from context_node.cli.conversation_lines import open_lines
from context_node.cli.exits import CannotStart, WorkFailed
from context_node.cli.exporting import Exporter, resume_point
from context_node.cli.importing import Importer, ImportOptions
from context_node.cli.progress import Progress


async def run_import(
    file: str, url: str, key: str | None, *, prefix: str, config: Mapping[str, Any], concurrency: int, batch: int, quiet: bool
) -> None:
    """Import a file and print the summary. Raises WorkFailed if a line failed, CannotStart if there was no beginning."""
    started = time.monotonic()
    options = ImportOptions(prefix, tuple(config.items()), concurrency, batch)
    with open_lines(file) as lines:
        async with connected(url, key, concurrency) as client:
            with Progress("import", lines.size, unit="B", is_bytes=True, quiet=quiet) as progress:
                report = await Importer(client, options, progress).run(lines)
    seconds = time.monotonic() - started
    rate = f" ({report.appended / seconds:,.0f} messages/s)" if report.appended and seconds else ""
    click.echo(
        f"Imported {report.contexts:,} contexts: {report.appended:,} messages appended, {report.present:,} were there already, "
        f"in {seconds:.1f} s{rate}."
    )
    if report.failed:
        lines_word = "line" if report.failed == 1 else "lines"
        raise WorkFailed(
            f"{report.failed:,} {lines_word} failed; see above. Mend them and run the same command again: the rest is skipped."
        )


async def run_export(file: str, url: str, key: str | None, *, prefix: str, resume: bool, concurrency: int, quiet: bool) -> None:
    """Export to a file and print the summary. Raises WorkFailed, CannotStart."""
    if resume and (file == "-" or file.endswith(".gz")):
        raise CannotStart("--resume needs a FILE that is not compressed.")
    async with connected(url, key, concurrency + 1) as client:
        after = resume_point(Path(file)) if resume else ""
        with output(file, resume) as out, Progress("export", None, unit=" contexts", quiet=quiet) as progress:
            try:
                report = await Exporter(client, out, progress, concurrency=concurrency).run(prefix, after)
            except (Refused, GaveUp) as error:
                raise WorkFailed(f"{error}. What was written is whole lines; --resume goes on behind them.") from error
    skipped = f" ({report.skipped:,} were there already)" if report.skipped else ""
    click.echo(f"Exported {report.contexts:,} contexts, {report.messages:,} messages{skipped}.", err=True)
    if report.failed:
        raise WorkFailed(f"{report.failed:,} contexts failed; see above. They are missing in the output.")


@contextmanager
def output(file: str, resume: bool) -> Iterator[IO[bytes]]:
    """Where lines go: standard output for `-`, gzip if the name says so. Raises CannotStart."""
    if file == "-":
        yield sys.stdout.buffer
        return
    path = Path(file)
    try:
        if not resume and path.exists() and path.stat().st_size:
            raise CannotStart(f"{file} exists already. Give --resume to go on with it, or another name.")
        opened = gzip.GzipFile(path, "wb") if file.endswith(".gz") else path.open("ab")
    except OSError as error:
        raise CannotStart(f"{file} cannot be written: {error.strerror}.") from error
    with opened as out:
        yield cast(IO[bytes], out)
