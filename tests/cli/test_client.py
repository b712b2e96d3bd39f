"""How a command talks to a node: patience, and what ends it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from context_node.cli.client import ATTEMPTS_MAX, Client, GaveUp, Refused, base_url, connected, context_path
from context_node.cli.exits import CannotStart, WorkFailed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pauses:
    """In place of sleeping: remembers for how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@asynccontextmanager
async def client_of(handler: Handler, pauses: Pauses) -> AsyncIterator[Client]:
    """A client of a server that answers everything by `handler`."""
    runner = web.ServerRunner(web.Server(handler))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(session, f"http://127.0.0.1:{runner.addresses[0][1]}", sleep=pauses, jitter=lambda: 1.0)
    finally:
        await runner.cleanup()


def answers(*given: web.Response) -> tuple[Handler, list[str]]:
    """A handler that gives these one after the other, and the paths it was asked."""
    left, asked = list(given), []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return left.pop(0)

    return handler, asked


def problem(status: int, code: str, **headers: str) -> web.Response:
    return web.json_response({"error": code, "message": f"{code}.", "details": {}}, status=status, headers=headers)


def test_s2_overload_is_met_with_growing_pauses_and_retry_after_is_honoured() -> None:
    """S2, from the client's side."""

    async def scenario() -> None:
        pauses = Pauses()
        busy = [problem(503, "overloaded"), problem(429, "overloaded", **{"Retry-After": "7"}), problem(503, "overloaded")]
        handler, asked = answers(*busy, web.json_response({"seq": 1}))
        async with client_of(handler, pauses) as client:
            answer = await client.call("POST", "/v1/contexts/a/messages", body=b"{}")
        assert answer.body == {"seq": 1}
        assert len(asked) == 4
        assert pauses.seconds == pytest.approx([0.2, 7.0, 0.8])

    asyncio.run(scenario())


def test_attempts_are_bounded() -> None:
    async def scenario() -> None:
        pauses = Pauses()
        handler, asked = answers(*[problem(503, "unavailable") for _ in range(ATTEMPTS_MAX)])
        async with client_of(handler, pauses) as client:
            with pytest.raises(GaveUp, match=r"unavailable\."):
                await client.call("GET", "/v1/contexts/a")
        assert len(asked) == ATTEMPTS_MAX

    asyncio.run(scenario())


def test_a_lost_connection_is_tried_again() -> None:
    async def scenario() -> None:
        pauses, seen = Pauses(), []

        async def handler(request: web.Request) -> web.StreamResponse:
            seen.append(request.path)
            if len(seen) < 3:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({})

        async with client_of(handler, pauses) as client:
            assert (await client.call("PUT", "/v1/contexts/a", body=b"{}")).status == 200
        assert len(seen) >= 3 and pauses.seconds

    asyncio.run(scenario())


def test_what_will_not_change_is_not_repeated() -> None:
    async def scenario() -> None:
        pauses = Pauses()
        handler, asked = answers(problem(422, "unprocessable"))
        async with client_of(handler, pauses) as client:
            with pytest.raises(Refused) as refused:
                await client.call("POST", "/v1/contexts/a/messages", body=b"{}")
        assert refused.value.status == 422 and refused.value.code == "unprocessable"
        assert len(asked) == 1 and not pauses.seconds

    asyncio.run(scenario())


def test_s5_a_key_that_is_not_accepted_ends_the_command() -> None:
    """S5."""

    async def scenario() -> None:
        handler, _ = answers(problem(401, "unauthenticated"))
        async with client_of(handler, Pauses()) as client:
            with pytest.raises(WorkFailed, match="CONTEXTSTORE_API_KEY"):
                await client.call("GET", "/v1/contexts/a")

    asyncio.run(scenario())


def test_only_a_missing_context_counts_as_missing() -> None:
    async def scenario() -> None:
        handler, _ = answers(problem(404, "context_not_found"), problem(404, "route_not_found"))
        async with client_of(handler, Pauses()) as client:
            assert (await client.call("GET", "/v1/contexts/a", missing_ok=True)).status == 404
            with pytest.raises(Refused):
                await client.call("GET", "/v1/contexts/a", missing_ok=True)

    asyncio.run(scenario())


def test_an_error_page_of_a_proxy_is_no_crash() -> None:
    async def scenario() -> None:
        handler, _ = answers(web.Response(status=404, text="<html>nothing here</html>"))
        async with client_of(handler, Pauses()) as client:
            with pytest.raises(Refused, match="HTTP status 404"):
                await client.call("GET", "/v1/contexts/a", missing_ok=True)

    asyncio.run(scenario())


def test_nobody_at_the_url_is_a_sentence_that_says_what_to_do() -> None:
    async def scenario() -> None:
        with pytest.raises(CannotStart, match="contextstore dev"):
            async with connected("http://127.0.0.1:9", None, 1):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize("given", ["http://node:4000", "http://node:4000/", "http://node:4000/v1", " http://node:4000/v1/ "])
def test_a_url_is_taken_with_or_without_v1(given: str) -> None:
    assert base_url(given) == "http://node:4000"


@pytest.mark.parametrize("given", ["node:4000", "ftp://node", "http://", "", "4000"])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(CannotStart, match="not the URL of a node"):
        base_url(given)


@pytest.mark.parametrize(("given", "path"), [("a:b@c~d", "a%3Ab%40c~d"), ("..", "%2E%2E"), (".", "%2E"), ("a/b?c", "a%2Fb%3Fc")])
def test_an_id_stays_one_segment_of_the_path(given: str, path: str) -> None:
    assert context_path(given) == f"/v1/contexts/{path}"
