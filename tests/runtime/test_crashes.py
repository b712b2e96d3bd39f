"""H1, H2, H4, W5 of a real process under load that is killed again and again; `bench/crash.py` does it a hundred times."""

import asyncio
from pathlib import Path

import pytest

from support.crash_run import CrashRun

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_h1_kills_under_load_lose_nothing_acknowledged_and_double_nothing(tmp_path: Path) -> None:
    """H1, H2, H4, W5: SIGKILL at random moments, also during a start, then one stop in order."""

    async def check() -> None:
        tally = await CrashRun(tmp_path / "data", seed=5).run(kills=5)
        print(f"\n{tally}")
        assert tally.is_clean, tally
        assert tally.kills >= 5 and tally.acknowledged > 100 and tally.windows_compared > 20

    asyncio.run(check())
