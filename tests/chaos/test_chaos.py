"""A short run of `make chaos`: real processes, real faults, clients whose every operation is judged."""

import asyncio
from pathlib import Path

import pytest

from support.chaos_run import ChaosRun, log_tails


@pytest.mark.slow
@pytest.mark.crash
def test_s3_deaths_and_pauses_of_real_nodes_lose_nothing_and_no_read_goes_back_in_time(tmp_path: Path) -> None:
    """S3, H1, H2, H4, H5: on three processes."""
    chaos = ChaosRun(tmp_path, nodes=3, seed=1)
    try:
        report = asyncio.run(chaos.run(["kill a leader", "pause a leader", "stop and start"], 3.0))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log_tails(tmp_path)}") from error
    assert report.is_clean, [str(violation) for violation in report.violations[:20]]
    assert report.acknowledged > 200
    assert sum(report.faults.values()) >= 3
