"""S5: without a known key nobody reads or writes; and what pages of other origins may do."""

from collections.abc import Mapping

import aiohttp
import msgspec
import pytest

from context_node.api_keys import KeyRing, Scope, keys_from_environment
from context_node.http.app import build_app
from support.edge_api import Api, edge_api
from support.fake_service import FakeService

SECRETS = {name: f"cs_{name}_" + name * 12 for name in ("reader", "writer", "admin")}
ENTRIES = [f"{SECRETS['reader']}=read", f"{SECRETS['writer']}=read+write", f"{SECRETS['admin']}=admin"]
TEXT = {"role": "user", "parts": [{"type": "text", "text": "hi"}]}


def ring() -> KeyRing:
    return KeyRing(None, keys_from_environment(ENTRIES))


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


async def test_s5_every_route_but_the_open_ones_needs_a_key() -> None:
    """S5, over the whole table of routes."""
    async with edge_api(FakeService(), keyring=ring()) as api:
        for route in api.server.edge.parts.router.routes:
            path = route.path.replace("{id}", "c1").replace("{name}", "p").replace("{seq}", "1")
            for headers in ({}, {"Authorization": "Bearer cs_reader_" + "x" * 43}, {"Authorization": "Basic eDp5"}):
                answer = await api.call(route.method, path, headers=headers)
                if route.scope is None:
                    assert answer.status == 200, path
                else:
                    assert (answer.status, answer.error) == (401, "unauthenticated"), (route.method, path)
                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_s5_a_key_does_only_what_its_scopes_say() -> None:
    """S5, over the whole table of routes and each kind of key."""
    scopes: Mapping[str, set[Scope]] = {"reader": {Scope.READ}, "writer": {Scope.READ, Scope.WRITE}, "admin": {Scope.ADMIN}}
    async with edge_api(FakeService(), keyring=ring()) as api:
        for route in api.server.edge.parts.router.routes:
            path = route.path.replace("{id}", "c1").replace("{name}", "p").replace("{seq}", "1")
            for name, held in scopes.items():
                answer = await api.call(route.method, path, headers=bearer(name))
                forbidden = route.scope is not None and route.scope not in held
                assert (answer.status == 403) == forbidden, (route.method, path, name)
                if forbidden:
                    assert answer.error == "forbidden"


async def test_a_node_without_keys_is_never_open_by_omission() -> None:
    with pytest.raises(ValueError, match="keyring"):
        build_app(FakeService(), version="0")


async def test_the_key_is_never_in_an_answer() -> None:
    async with edge_api(FakeService(), keyring=ring()) as api:
        for path in ("/v1/contexts/nope", "/v1/contexts/!"):
            answer = await api.get(path, bearer("reader"))
            assert SECRETS["reader"].encode() not in answer.body
            assert SECRETS["reader"] not in str(answer.headers)


async def test_generated_ids_follow_from_who_asks() -> None:
    async with edge_api(FakeService(), keyring=ring()) as api:
        made = await api.call("POST", "/v1/contexts", headers={**bearer("writer"), "Idempotency-Key": "k1"})
        assert made.json["id"] == "c-writer-k1"


async def opened(api: Api, **options: object) -> aiohttp.ClientWebSocketResponse:
    return await api.session.ws_connect(api.server.url + "/v1/contexts/c1/stream", **options)


async def test_a_browser_authenticates_a_websocket_by_subprotocol() -> None:
    async with edge_api(FakeService(), keyring=ring()) as api:
        await api.call("PUT", "/v1/contexts/c1", {}, bearer("writer"))
        key = "contextstore.bearer." + SECRETS["reader"]
        async with await opened(api, protocols=("contextstore.v1", key)) as socket:
            assert socket.protocol == "contextstore.v1", "the key is not echoed"
            assert b"context" in (await socket.receive_str()).encode()
        async with await opened(api, protocols=(key,)) as socket:
            assert socket.protocol == key, "browsers insist on one of theirs"
        for protocols in ((), ("contextstore.v1",), ("contextstore.bearer.cs_reader_" + "x" * 43,)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await opened(api, protocols=protocols)
            assert refusal.value.status == 401


async def test_a_ticket_opens_one_context_for_a_while() -> None:
    now = [1000.0]
    sse = {"Accept": "text/event-stream"}
    async with edge_api(FakeService(), keyring=ring(), now=lambda: now[0]) as api:
        for name in ("c1", "c2"):
            await api.call("PUT", f"/v1/contexts/{name}", {}, bearer("writer"))
        made = await api.call("POST", "/v1/contexts/c1/stream-ticket", headers=bearer("reader"))
        assert (made.status, made.json["expires_in_s"]) == (201, 60.0)
        ticket = made.json["ticket"]

        async def status(context_id: str, given: str) -> int:
            url = f"{api.server.url}/v1/contexts/{context_id}/stream?ticket={given}"
            async with api.session.get(url, headers=sse) as response:
                return response.status

        assert await status("c1", ticket) == 200
        assert await status("c2", ticket) == 401
        for bad in ("", "x", ticket[:-2], ticket[:-2] + "AA", "%00", "é", "A" * 500):
            assert await status("c1", bad) == 401, bad
        assert (await api.get(f"/v1/contexts/c1?ticket={ticket}")).status == 401, "for streams only"
        now[0] += 60.0
        assert await status("c1", ticket) == 401
        missing = await api.call("POST", "/v1/contexts/nope/stream-ticket", headers=bearer("reader"))
        assert missing.error == "context_not_found"


async def test_in_open_mode_a_foreign_page_can_neither_write_nor_follow() -> None:
    """A page that the user happens to visit reaches a node on loopback by the user's browser."""
    service = FakeService()
    async with edge_api(service) as api:
        evil = {"Origin": "https://evil.example"}
        body = msgspec.json.encode({"message": TEXT})
        answer = await api.call("POST", "/v1/contexts/c1/messages?create=true", data=body, headers=evil)
        assert (answer.status, answer.error, service.kept) == (403, "forbidden", {})
        own = {"Origin": api.server.url, "Content-Type": "application/json"}
        assert (await api.call("POST", "/v1/contexts/c1/messages?create=true", data=body, headers=own)).status == 201
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await opened(api, headers=evil)
        assert refusal.value.status == 403


async def test_cors_is_off_unless_origins_are_named() -> None:
    origin = {"Origin": "https://app.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    async with edge_api(FakeService()) as api:
        assert "Access-Control-Allow-Origin" not in (await api.get("/health/live", origin)).headers
        assert (await api.call("OPTIONS", "/v1/contexts", headers=preflight)).status == 405
    async with edge_api(FakeService(), cors_origins=["https://app.example"]) as api:
        answer = await api.get("/v1/contexts/nope", origin)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (404, "https://app.example")
        assert answer.headers["Vary"] == "Origin"
        asked = await api.call("OPTIONS", "/v1/contexts/c1/messages", headers=preflight)
        assert asked.status == 204
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        assert "Idempotency-Key" in asked.headers["Access-Control-Allow-Headers"]
        assert asked.headers["Access-Control-Allow-Origin"] == "https://app.example"
        other = await api.get("/health/live", {"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in other.headers
        assert (await api.call("OPTIONS", "/nowhere", headers=preflight)).status == 404
        allowed = await api.call("POST", "/v1/contexts", {}, origin)
        assert allowed.status == 201
