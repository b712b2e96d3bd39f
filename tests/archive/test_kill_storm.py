"""A short run of `make archive-chaos`: nodes die while they archive, and Postgres never shows a hole."""

import asyncio
from pathlib import Path

import pytest

from support.archive_run import ArchiveRun
from support.chaos_run import log_tails


@pytest.mark.slow
@pytest.mark.crash
def test_leaders_that_die_while_they_archive_leave_no_hole_and_double_nothing(dsn: str, tmp_path: Path) -> None:
    """H1, H2, H6: on three processes and a real Postgres."""
    run = ArchiveRun(tmp_path, dsn, seed=1)
    try:
        report = asyncio.run(run.storm(3))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log_tails(tmp_path)}") from error
    assert not report.violations, report.violations[:20]
    assert report.kills == 3
    assert report.rows == report.acknowledged > 600
    assert report.checks > 20
