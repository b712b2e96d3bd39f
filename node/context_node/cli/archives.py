"""What `restore` and `verify-archive` do around their work: connect to both sides, show progress, sum up, choose the exit code."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from hashlib import blake2b
from pathlib import Path

import click

from context_node.archive import uris
from context_node.archive.errors import ArchiveError
from context_node.archive.postgres import PostgresOptions
from context_node.archive.reading import ArchiveReader, ContextRow
from context_node.cli.client import Client, GaveUp, Refused, connected
from context_node.cli.comparing import Summed, summed_export, summed_rows
from context_node.cli.exits import CannotStart, WorkFailed
from context_node.cli.progress import Progress
from context_node.cli.restoring import ContextFailed, Restorer, RestoreReport, archived
from context_node.cli.verifying import FINDINGS_MAX, LATE, Verifier, VerifyReport

FAILED_SHOWN_MAX = 50
URI = "CONTEXTSTORE_ARCHIVE_POSTGRES"


@asynccontextmanager
async def opened(file: Path | None, schema: str, connections: int) -> AsyncIterator[ArchiveReader]:
    """The archive. Raises CannotStart if it cannot be reached or is none; WorkFailed if it breaks off later."""
    archive = ArchiveReader(PostgresOptions(uri(file), schema), connections)
    try:
        try:
            await archive.open()
        except ArchiveError as error:
            raise CannotStart(f"The archive cannot be read: {error}.") from error
        try:
            yield archive
        except ArchiveError as error:
            raise WorkFailed(f"The archive cannot be read any further: {error}.") from error
    finally:
        await archive.close()


def uri(file: Path | None) -> str:
    """Where the archive is. Raises CannotStart."""
    if file is None:
        given = os.environ.get(URI, "").strip()
        if not given:
            raise CannotStart(f"Say where the archive is: --archive-postgres-file FILE with its URI, or {URI}.")
        return given
    try:
        return uris.read_file(file)
    except ArchiveError as error:
        raise CannotStart(f"{error}.") from error


# --- restore --------------------------------------------------------------------------------------------------------------


async def run_restore(
    file: Path | None, schema: str, url: str, key: str | None, *, resume: bool, verify: bool, concurrency: int, quiet: bool
) -> None:
    """Restore a cluster and print the summary. Raises WorkFailed if a context failed or differs, CannotStart if there was no beginning."""
    started = time.monotonic()
    async with opened(file, schema, concurrency + 1) as archive, connected(url, key, concurrency + 1) as client:
        totals = await archive.totals()
        with Progress("restore", totals.messages, unit=" messages", quiet=quiet) as progress:
            restorer = Restorer(client, archive, progress, concurrency=concurrency, resume=resume)
            await restorer.check_target()
            await restorer.policies()
            report = await restorer.run()
        tell_restored(report, time.monotonic() - started)
        if verify:
            started = time.monotonic()
            with Progress("verify", totals.contexts, unit=" contexts", quiet=quiet) as progress:
                sums = await verified(client, archive, progress, restorer, concurrency)
            click.echo(
                f"Verified {sums.contexts:,} contexts, {sums.messages:,} messages, {sums.size_bytes:,} bytes in "
                f"{time.monotonic() - started:.1f} s; blake2b of everything: {sums.digest.hexdigest()}"
            )
    if report.failed:
        shown = sorted(report.failed)[:FAILED_SHOWN_MAX]
        click.echo("\n".join(["Not restored, or not as archived:", *(f"  {one}" for one in shown)]))
        if len(report.failed) > len(shown):
            click.echo(f"  … and {len(report.failed) - len(shown):,} more")
        raise WorkFailed(f"{len(report.failed):,} contexts failed; see above. The same command with --resume tries them again.")


def tell_restored(report: RestoreReport, seconds: float) -> None:
    rate = f" ({report.messages / seconds:,.0f} messages/s)" if report.messages and seconds else ""
    click.echo(
        f"Restored {report.contexts:,} contexts, {report.policies:,} policies: {report.messages:,} messages, {report.size_bytes:,} bytes "
        f"in {seconds:.1f} s{rate}."
    )
    if report.present:
        click.echo(f"{report.present:,} contexts were there already.")
    if report.cut:
        click.echo(
            f"{report.cut:,} contexts end before their newest messages, which had not reached the archive; their windows were made anew."
        )
    if report.older:
        click.echo(f"{report.older:,} contexts were left out: they had been purged, and their ids are those of newer ones.")


class Sums:
    """Everything that was verified. The digest is over the contexts in the order of their ids: each id, and the digest of its history."""

    def __init__(self) -> None:
        self.contexts = self.messages = self.size_bytes = 0
        self.digest = blake2b(digest_size=32)

    def add(self, context_id: str, one: Summed) -> None:
        self.contexts += 1
        self.messages += one.messages
        self.size_bytes += one.size_bytes
        self.digest.update(context_id.encode() + b"\0" + one.digest)


async def verified(client: Client, archive: ArchiveReader, progress: Progress, restorer: Restorer, concurrency: int) -> Sums:
    """Compare each restored history with the archive's, by count and digest; what differs becomes a failed one of `restorer`."""
    sums = Sums()
    waiting: deque[tuple[str, asyncio.Task[Summed]]] = deque()

    async def settle() -> None:
        context_id, task = waiting.popleft()
        try:
            sums.add(context_id, await task)
        except (ContextFailed, Refused, GaveUp) as failure:
            restorer.failed(context_id, str(failure))
        progress.reached(sums.contexts, f"{sums.contexts:,} contexts, {sums.messages:,} messages, {sums.size_bytes / 1e6:,.0f} MB")

    newest = ""
    try:
        async with aclosing(archive.contexts()) as rows:
            async for row in rows:
                if row.id != newest and row.id not in restorer.report.failed:
                    waiting.append((row.id, asyncio.create_task(summed(client, archive, row))))
                    if len(waiting) >= concurrency:
                        await settle()
                newest = row.id
            while waiting:
                await settle()
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
    return sums


async def summed(client: Client, archive: ArchiveReader, row: ContextRow) -> Summed:
    """A history that is the same on both sides. Raises `ContextFailed` if it is not; `Refused`, `GaveUp`, `ArchiveError`."""
    context = await archived(archive, row)
    here, there = await asyncio.gather(
        summed_export(client, row.id), summed_rows(archive, row.id, row.incarnation, context.last_seq), return_exceptions=True
    )
    for one in (here, there):
        if isinstance(one, BaseException):
            raise one
    assert isinstance(here, Summed)
    assert isinstance(there, Summed)
    if here != there:
        raise ContextFailed(
            f"Its history is not the archived one: {here.messages:,} messages with digest {here.digest.hex()[:16]} in the cluster, "
            f"{there.messages:,} with {there.digest.hex()[:16]} in the archive."
        )
    return here


# --- verify-archive -------------------------------------------------------------------------------------------------------


async def run_verify(
    file: Path | None, schema: str, url: str, key: str | None, *, prefix: str, strict: bool, concurrency: int, quiet: bool
) -> None:
    """Compare and print what was found. Raises WorkFailed for differences, CannotStart if there was no beginning."""
    started = time.monotonic()
    async with opened(file, schema, concurrency + 1) as archive, connected(url, key, concurrency + 1) as client:
        totals = await archive.totals(prefix)
        with Progress("verify", totals.contexts, unit=" contexts", quiet=quiet) as progress:
            try:
                report = await Verifier(client, archive, progress, concurrency=concurrency).run(prefix)
            except (Refused, GaveUp) as error:
                raise WorkFailed(f"The cluster cannot be read any further: {error}.") from error
    tell_verified(report, time.monotonic() - started)
    if report.differences:
        raise WorkFailed(f"{report.differences:,} differences; see above.")
    if strict and report.kinds[LATE]:
        raise WorkFailed(f"{report.kinds[LATE]:,} contexts are not archived up to their end.")


def tell_verified(report: VerifyReport, seconds: float) -> None:
    if report.findings:
        wide = max(len(finding.kind) for finding in report.findings)
        long = min(60, max(len(finding.context_id) for finding in report.findings))
        for finding in sorted(report.findings, key=lambda one: (one.context_id, one.kind)):
            click.echo(f"{finding.kind:<{wide}}  {finding.context_id:<{long}}  {finding.what}")
        if report.kinds.total() > FINDINGS_MAX:
            click.echo(f"… and {report.kinds.total() - FINDINGS_MAX:,} more findings.")
    click.echo(
        f"Compared {report.contexts:,} contexts, {report.messages:,} messages, {report.size_bytes:,} bytes in {seconds:.1f} s: "
        f"{report.differences:,} differences, {report.late_messages:,} messages not archived yet."
    )
