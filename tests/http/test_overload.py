"""S2: overload and slowness are refused early and clearly; faults of ours show nothing of their inside."""

import asyncio
import logging

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from context_node.contexts import refusals
from context_node.contexts.refusals import Overloaded, Refusal, Unavailable
from context_node.http import problems
from context_node.http.limits import HttpLimits
from context_node.http.logs import ConsoleFormatter, JsonFormatter
from support.edge_api import edge_api
from support.fake_service import FakeService
from support.waiting import until


async def test_s2_requests_above_the_bound_get_503_and_probes_still_answer() -> None:
    """S2: early, with Retry-After."""
    service = FakeService()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    service.before = wait
    async with edge_api(service, limits=HttpLimits(requests_in_flight_max=2)) as api:
        waiting = [asyncio.create_task(api.append(f"c{n}")) for n in range(2)]
        await until(lambda: api.server.edge.metrics.in_flight == 2, "two requests to be in flight")
        refused = await api.append("c3")
        assert (refused.status, refused.error, refused.headers["Retry-After"]) == (503, "overloaded", "1")
        assert (await api.get("/health/live")).status == 200
        assert b"contextstore_http_refused_overload_total 1.0" in (await api.get("/metrics")).body
        gate.set()
        assert [(await one).status for one in waiting] == [201, 201]
        assert (await api.append("c3")).status == 201


async def test_a_write_that_takes_too_long_is_told_as_unknown_and_a_read_as_unavailable() -> None:
    service = FakeService()
    never = asyncio.Event()

    async def wait() -> None:
        await never.wait()

    async with edge_api(service, limits=HttpLimits(request_timeout_s=0.05)) as api:
        await api.append("c1")
        service.before = wait
        write = await api.append("c1")
        assert (write.status, write.error) == (503, "outcome_unknown")
        assert "Retry-After" in write.headers
        read = await api.get("/v1/contexts/c1")
        assert (read.status, read.error) == (503, "unavailable")
        slow_body = b"POST /v1/contexts/c1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{"
        assert (await api.raw(slow_body)).startswith(b"HTTP/1.1 503 ")
        assert api.server.edge.metrics.in_flight == 0


async def test_refusals_of_the_service_keep_their_code_and_retry_time() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        for refusal, status, retry in (
            (Overloaded("The queue is full.", retry_after_s=7), 503, "7"),
            (Overloaded("The queue is full.", retry_after_s=0.2), 503, "1"),
            (Unavailable("The disk is full."), 503, "1"),
        ):

            async def refuse(refusal: Refusal = refusal) -> None:
                raise refusal

            service.before = refuse
            answer = await api.append("c1")
            assert (answer.status, answer.error, answer.headers["Retry-After"]) == (status, refusal.code, retry)


async def test_a_fault_of_ours_is_500_without_its_inside_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    service = FakeService()

    async def fail() -> None:
        raise RuntimeError("secret inside")

    service.before = fail
    async with edge_api(service) as api:
        answer = await api.append("c1")
    assert (answer.status, answer.error) == (500, "internal_error")
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    record = next(record for record in caplog.records if record.getMessage() == "request_failed")
    line = msgspec.json.decode(JsonFormatter().format(record))
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert "secret inside" in line["exception"]
    assert "hello" not in str(line), "no message content in a log"
    assert "request_failed request_id=" in ConsoleFormatter().format(record)


async def test_an_export_that_fails_midway_breaks_off(caplog: pytest.LogCaptureFixture) -> None:
    service = FakeService()
    async with edge_api(service) as api:
        await api.append("c1")

        async def failing(context_id: str):  # type: ignore[no-untyped-def]
            yield b"{}\n"
            raise RuntimeError("disk")

        service.export = failing  # type: ignore[method-assign, assignment]
        answer = await api.raw(b"GET /v1/contexts/c1/export HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert not answer.endswith(b"0\r\n\r\n"), "the reader can tell that it is not whole"
    assert "export_failed" in caplog.text


async def test_stopping_finishes_what_is_under_way() -> None:
    service = FakeService()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    service.before = wait
    async with edge_api(service) as api:
        request = asyncio.create_task(api.append("c1"))
        await until(lambda: api.server.edge.metrics.in_flight == 1, "the request to be in flight")
        stopping = asyncio.create_task(api.server.stop())
        await until(lambda: api.server.edge.is_closing, "the stop to begin")
        gate.set()
        assert (await request).status == 201
        await stopping


async def test_every_refusal_has_a_status() -> None:
    """A refusal without one would be answered as a fault of ours."""
    found = [
        kind
        for module in (refusals, problems)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Refusal) and kind is not Refusal
    ]
    assert len(found) > 20
    assert {kind.code for kind in found} <= set(problems.STATUS_OF)


async def test_two_edges_of_one_process_count_apart() -> None:
    registry = CollectorRegistry()
    async with edge_api(FakeService(), registry=registry) as api, edge_api(FakeService()) as other:
        await api.get("/health/live")
        assert other.server.edge.metrics.of_route["/health/live"].classes[2] == 0
        assert registry.get_sample_value("contextstore_http_requests_total", {"route": "/health/live", "status": "2xx"}) == 1.0


async def test_the_access_log_is_an_event_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with edge_api(FakeService(), access_log=True) as api:
        await api.get("/health/live")
    record = next(record for record in caplog.records if record.getMessage() == "request")
    line = msgspec.json.decode(JsonFormatter().format(record))
    assert (line["event"], line["path"], line["status"], line["level"]) == ("request", "/health/live", 200, "info")
