"""The thread for what waits on a disk: in order, one at a time, and never silent about what it will not do."""

import asyncio

import pytest

from context_node.runtime.worker import Worker


def test_jobs_run_in_order_and_their_outcomes_come_back() -> None:
    async def check() -> None:
        worker = Worker(asyncio.get_running_loop(), "test")
        done: list[int] = []
        results = await asyncio.gather(*(worker.run(lambda number=number: done.append(number) or number) for number in range(20)))
        assert results == done == list(range(20))
        worker.close()

    asyncio.run(check())


def test_an_error_of_a_job_is_raised_where_it_is_awaited() -> None:
    async def check() -> None:
        worker = Worker(asyncio.get_running_loop(), "test")
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        assert await worker.run(lambda: "as before") == "as before"
        worker.close()

    asyncio.run(check())


def test_a_closed_worker_says_so_instead_of_leaving_its_caller_waiting() -> None:
    async def check() -> None:
        worker = Worker(asyncio.get_running_loop(), "test")
        worker.close()
        worker.close()
        with pytest.raises(RuntimeError, match="closed"):
            await worker.run(lambda: None)

    asyncio.run(check())
