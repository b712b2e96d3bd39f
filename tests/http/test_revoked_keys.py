"""S5: a key that is revoked ends what it had opened."""

from pathlib import Path

import aiohttp

from context_node.api_keys import CreatedKey, KeyRing, create_key, revoke_key
from support.edge_api import Api, edge_api
from support.fake_service import FakeService
from support.waiting import until

SSE = {"Accept": "text/event-stream"}


def bearer(key: CreatedKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.plain}"}


async def websocket(api: Api, headers: dict[str, str], query: str = "") -> aiohttp.ClientWebSocketResponse:
    return await api.session.ws_connect(api.server.url + "/v1/contexts/c1/stream" + query, headers=headers)


async def test_s5_streams_of_a_revoked_key_end_with_a_reason_and_others_go_on(tmp_path: Path) -> None:
    """S5: by WebSocket, by Server-Sent Events, and by a ticket that the key asked for."""
    path = tmp_path / "keys.jsonl"
    lost, good = create_key(path, "lost"), create_key(path, "good")
    ring = KeyRing(path)
    async with edge_api(FakeService(), keyring=ring) as api:
        await api.call("PUT", "/v1/contexts/c1", {}, bearer(lost))
        ticket = (await api.call("POST", "/v1/contexts/c1/stream-ticket", headers=bearer(lost))).json["ticket"]
        ended = [await websocket(api, bearer(lost)), await websocket(api, {}, f"?ticket={ticket}")]
        other = await websocket(api, bearer(good))
        events = await api.session.get(api.server.url + "/v1/contexts/c1/stream", headers={**SSE, **bearer(lost)})
        for socket in (*ended, other):
            await socket.receive_str()
        assert api.server.edge.metrics.streams == 4

        create_key(path, "new")
        assert ring.reload_if_changed()
        assert not any(slot.is_stopped() for slot in api.server.edge.streams), "a change that leaves the key good ends nothing"
        revoke_key(path, lost.stored.id)
        assert ring.reload_if_changed()

        for socket in ended:
            closing = await socket.receive()
            assert (closing.type, socket.close_code, closing.extra) == (aiohttp.WSMsgType.CLOSE, 1008, "key revoked")
        assert b'{"reason":"key revoked"}' in await events.content.read()
        await until(lambda: api.server.edge.metrics.streams == 1, "only the other key's stream to be open")
        message = {"message": {"role": "user", "parts": [{"type": "text", "text": "on"}]}}
        assert (await api.call("POST", "/v1/contexts/c1/messages", message, bearer(good))).status == 201
        assert '"event":"message"' in await other.receive_str()
        assert (await api.get(f"/v1/contexts/c1/stream?ticket={ticket}", SSE)).status == 401, "its tickets are over too"
        await other.close()
