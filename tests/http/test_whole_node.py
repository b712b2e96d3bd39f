"""The edge on a real node: what clients see of the promises, from the socket to the disk and back."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from context_node.http import schemas
from support.edge_api import Api
from support.node_service import node_api

SSE = {"Accept": "text/event-stream"}


def text(words: str, role: str = "user", **fields: Any) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "text": words}], **fields}


async def appended(api: Api, context_id: str, count: int) -> None:
    for start in range(0, count, 100):
        batch = [text(f"message {number}") for number in range(start + 1, min(count, start + 100) + 1)]
        answer = await api.call("POST", f"/v1/contexts/{context_id}/messages?create=true", {"messages": batch})
        assert answer.status == 201, answer.body


async def test_h1_what_was_acknowledged_is_there_after_a_restart_byte_for_byte(tmp_path: Path) -> None:
    """H1, W5: history and window are the same after the node was stopped and started."""
    paths = ("/v1/contexts/c1", "/v1/contexts/c1/messages?limit=1000", "/v1/contexts/c1/context", "/v1/contexts/c1/export", "/v1/contexts")
    async with node_api(tmp_path) as api:
        await api.call("PUT", "/v1/contexts/c1", {"token_budget": 200, "metadata": {"team": "a"}})
        await appended(api, "c1", 120)
        before = [(await api.get(path)).body for path in paths]
    async with node_api(tmp_path) as api:
        assert [(await api.get(path)).body for path in paths] == before


async def test_h4_a_retry_with_the_same_key_or_id_answers_what_the_first_try_answered(tmp_path: Path) -> None:
    """H4, also across a restart; the same key with another content is refused."""
    keyed = {"Idempotency-Key": "k-1"}
    path = "/v1/contexts/c1/messages?create=true"
    async with node_api(tmp_path) as api:
        first = await api.call("POST", path, {"message": text("once")}, keyed)
        with_id = await api.call("POST", path, {"message": text("twice", id="m-2")})
        made = await api.call("POST", "/v1/contexts", {"token_budget": 100}, keyed)
        assert (first.status, with_id.status, made.status) == (201, 201, 201)
    async with node_api(tmp_path) as api:
        assert (await api.call("POST", path, {"message": text("once")}, keyed)).body == first.body
        assert (await api.call("POST", path, {"message": text("twice", id="m-2")})).body == with_id.body
        again = await api.call("POST", "/v1/contexts", {"token_budget": 100}, keyed)
        assert again.json["id"] == made.json["id"]
        other = await api.call("POST", path, {"message": text("other")}, keyed)
        assert (other.status, other.error) == (409, "idempotency_conflict")
        other = await api.call("POST", path, {"message": text("other", id="m-2")})
        assert (other.status, other.error) == (409, "idempotency_conflict")
        assert (await api.get("/v1/contexts/c1")).json["last_seq"] == 2


async def test_w1_a_window_never_exceeds_its_budget_and_keeps_the_system_message(tmp_path: Path) -> None:
    """W1, W3, and `budget_tokens` for one read."""
    async with node_api(tmp_path) as api:
        await api.call("PUT", "/v1/contexts/c1", {"token_budget": 150})
        await api.call("POST", "/v1/contexts/c1/messages", {"message": text("be brief", "system")})
        await appended(api, "c1", 60)
        for query, budget in (("", 150), ("?budget_tokens=60", 60)):
            window = (await api.get(f"/v1/contexts/c1/context{query}")).json
            assert 0 < window["used_tokens"] <= budget and not window["over_budget"]
            assert window["used_tokens"] == window["token_count"] == sum(one["token_count"] for one in window["messages"])
            assert window["messages"][0]["role"] == "system"
            assert window["messages"][-1]["parts"][0]["text"] == "message 60"


async def test_an_etag_holds_until_the_context_changes(tmp_path: Path) -> None:
    async with node_api(tmp_path) as api:
        await appended(api, "c1", 3)
        tag = (await api.get("/v1/contexts/c1/context")).headers["ETag"]
        assert (await api.get("/v1/contexts/c1/context", {"If-None-Match": tag})).status == 304
        assert (await api.get("/v1/contexts/c1/context?budget_tokens=50", {"If-None-Match": tag})).status == 200
        await appended(api, "c1", 1)
        assert (await api.get("/v1/contexts/c1/context", {"If-None-Match": tag})).status == 200


async def test_a_rewrite_by_hand_takes_a_range_and_refuses_what_splits_a_unit(tmp_path: Path) -> None:
    async with node_api(tmp_path) as api:
        await appended(api, "c1", 4)
        call = {"role": "assistant", "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
        result = {"role": "tool", "tool_call_id": "t", "content": "42"}
        assert (await api.call("POST", "/v1/contexts/c1/messages", {"messages": [call, result]})).status == 201
        split = await api.call("POST", "/v1/contexts/c1/compact", {"covers": [1, 5], "replacement": [text("summary")]})
        assert (split.status, split.error) == (422, "unprocessable"), split.json
        done = await api.call("POST", "/v1/contexts/c1/compact", {"covers": [1, 4], "replacement": [text("summary")]})
        assert (done.status, done.json) == (200, {"version": 3}), done.json
        window = (await api.get("/v1/contexts/c1/context")).json
        assert [one["parts"][0]["type"] for one in window["messages"]] == ["text", "tool_call", "tool_result"]
        assert window["segments"][0] == {"type": "summary", "from_seq": 1, "to_seq": 4}
        assert len((await api.get("/v1/contexts/c1/messages")).json["messages"]) == 6, "history is untouched (W6)"


async def test_a_window_can_be_sent_back_as_it_was_read(tmp_path: Path) -> None:
    """Apps compact by reading the window, changing some of it, and sending the rest back (as the TypeScript client does)."""
    async with node_api(tmp_path) as api:
        await appended(api, "c1", 4)
        await api.call("POST", "/v1/contexts/c1/messages", {"message": text("with id", id="m-5", metadata={"a": 1})})
        for version in (3, 4):
            window = (await api.get("/v1/contexts/c1/context")).json
            kept = [text("what was said"), *window["messages"][-2:]]
            done = await api.call("POST", "/v1/contexts/c1/compact", {"replacement": kept, "if_version": window["version"]})
            assert (done.status, done.json) == (200, {"version": version}), done.json
        window = (await api.get("/v1/contexts/c1/context")).json
        assert [one["parts"][0]["text"] for one in window["messages"]] == ["what was said", "message 4", "with id"]


async def test_nonsense_policies_are_refused_when_they_are_put(tmp_path: Path) -> None:
    async with node_api(tmp_path) as api:
        for policy in (
            {"strategy": "magic"},
            {"strategy": "last_n", "config": {"limit": 0}},
            {"strategy": "last_n", "config": {"limt": 3}},
            {"strategy": "last_n", "config": {"limit": "3"}},
            {"strategy": "skip_parts", "config": {"kinds": "x"}},
            {"strategy": "pipeline", "config": {}},
            {"strategy": "summarize"},
        ):
            for method, path, body in (("PUT", "/v1/contexts/c1", {"policy": policy}), ("PUT", "/v1/policies/p1", policy)):
                refused = await api.call(method, path, body)
                assert refused.status in (400, 422), (policy, refused.json)
                assert refused.error
        assert (await api.call("PUT", "/v1/contexts/c1", {"policy": {"ref": "nope"}})).status in (404, 409, 422)
        assert (await api.call("PUT", "/v1/contexts/c1", {"tokenizer": "nope"})).status in (400, 422)
        assert (await api.get("/v1/contexts/c1")).status == 404, "nothing was created"


async def test_a_stream_replays_exactly_once_while_messages_arrive(tmp_path: Path) -> None:
    """Replay, then live, on one connection: no message missing, none twice, in order."""
    async with node_api(tmp_path) as api:
        await appended(api, "c1", 250)

        async def follow(cursor: int) -> list[int]:
            seen = []
            async with api.session.ws_connect(f"{api.server.url}/v1/contexts/c1/stream?cursor={cursor}") as socket:
                while not seen or seen[-1] < 400:
                    frame = msgspec.json.decode(await socket.receive_str())
                    if frame["event"] == "message":
                        assert frame["data"]["seq"] == frame["seq"]
                        seen.append(frame["seq"])
            return seen

        followers = [asyncio.create_task(follow(cursor)) for cursor in (0, 100, 249)]
        for _ in range(15):
            await appended(api, "c1", 10)
        assert [await one for one in followers] == [list(range(cursor + 1, 401)) for cursor in (0, 100, 249)]


async def test_a_purge_ends_streams_and_frees_the_id(tmp_path: Path) -> None:
    async with node_api(tmp_path) as api:
        await appended(api, "c1", 2)
        async with api.session.ws_connect(f"{api.server.url}/v1/contexts/c1/stream?cursor=2") as socket:
            assert msgspec.json.decode(await socket.receive_str())["event"] == "context"
            assert (await api.call("DELETE", "/v1/contexts/c1?purge=true")).status == 204
            assert msgspec.json.decode(await socket.receive_str())["event"] == "purged"
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert (await api.get("/v1/contexts/c1/messages")).status == 404
        await appended(api, "c1", 1)
        assert (await api.get("/v1/contexts/c1")).json["last_seq"] == 1
        assert (await api.get("/v1/contexts/c1/stream?cursor=2", SSE)).error == "cursor_ahead"


async def test_lists_walk_over_all_shards_exactly_once(tmp_path: Path) -> None:
    async with node_api(tmp_path) as api:
        names = sorted(f"ctx-{number:03}" for number in range(57))
        for name in names:
            await api.call("PUT", f"/v1/contexts/{name}", {"metadata": {"odd": int(name[-1]) % 2 == 1, "n": name}})
        for order in ("id", "-updated_at"):
            seen: list[str] = []
            cursor = ""
            while cursor is not None:
                path = f"/v1/contexts?limit=10&order={order}" + (f"&cursor={cursor}" if cursor else "")
                page = (await api.get(path)).json
                seen += [one["id"] for one in page["contexts"]]
                cursor = page["next_cursor"]
            assert (len(seen), sorted(seen)) == (57, names)
        found = (await api.get("/v1/contexts?metadata.n=ctx-007&metadata.odd=true")).json["contexts"]
        assert [one["id"] for one in found] == ["ctx-007"]
        for bad in ("x", "%00", "A" * 4000):
            assert (await api.get(f"/v1/contexts?cursor={bad}")).status == 400


async def test_a_tombstone_refuses_writes_and_put_revives(tmp_path: Path) -> None:
    async with node_api(tmp_path) as api:
        await appended(api, "c1", 1)
        for _ in range(2):
            assert (await api.call("DELETE", "/v1/contexts/c1")).status == 204
        for method, path, body in (
            ("POST", "/v1/contexts/c1/messages", {"message": text("no")}),
            ("PATCH", "/v1/contexts/c1/metadata", {"metadata": {"a": 1}}),
            ("POST", "/v1/contexts/c1/compact", {"replacement": [text("x")]}),
            ("PUT", "/v1/contexts/c1/messages/1/pin", None),
        ):
            refused = await api.call(method, path, body)
            assert (refused.status, refused.error) == (409, "context_tombstoned"), path
        assert len((await api.get("/v1/contexts/c1/messages")).json["messages"]) == 1
        assert (await api.call("PUT", "/v1/contexts/c1", {})).json["status"] == "active"
        assert (await api.call("DELETE", "/v1/contexts/nope")).status == 404


async def test_s1_what_is_refused_changes_nothing_that_can_be_read(tmp_path: Path) -> None:
    """S1, on the real node: after every kind of refusal each read gives the same bytes as before, and the node serves on."""
    paths = ("/v1/contexts/c1", "/v1/contexts/c1/messages", "/v1/contexts/c1/context", "/v1/contexts?status=any", "/v1/policies")
    post, put = ("POST", "/v1/contexts/c1/messages"), ("PUT", "/v1/contexts/c1")
    compact, patch = ("POST", "/v1/contexts/c1/compact"), ("PATCH", "/v1/contexts/c1/metadata")
    ok = msgspec.json.encode({"message": text("x")})
    part = b'{"message":{"role":"user","parts":[{"type":"x","v":%b}]}}'
    attempts: list[tuple[tuple[str, str], bytes]] = [
        *((post, part % value) for value in (b"NaN", b'"\\ud800"', b'"\xff"', b"9" * 30, b"[" * 100_000)),
        *((post, data) for data in (b"", b"{", b"[]", b"null", ok[:-1], ok + b"]", b'{"message":{}}', b'{"messages":[]}')),
        (post, msgspec.json.encode({"message": text("x"), "if_version": 99})),
        (post, msgspec.json.encode({"message": text("x"), "if_seq": 0})),
        (post, msgspec.json.encode({"messages": [text("x", id="a"), text("y", id="a")]})),
        (post, msgspec.json.encode({"messages": [text("x"), text("known but other", id="m1")]})),
        (post, msgspec.json.encode({"message": text("x" * (1 << 20))})),
        (post, b" " * (9 << 20)),
        (post, msgspec.json.encode({"messages": [text("x")] * 1001})),
        (put, msgspec.json.encode({"token_budget": 10**7 + 1})),
        (put, msgspec.json.encode({"target_ratio": 0.9})),
        (put, msgspec.json.encode({"metadata": {"a": "x" * 20_000}})),
        (put, msgspec.json.encode({"policy": {"ref": "nope"}})),
        (patch, msgspec.json.encode({"metadata": {"b": "x" * 16_380}})),
        (compact, msgspec.json.encode({"replacement": [text("x")], "covers": [1, 99]})),
        (compact, msgspec.json.encode({"replacement": [text("x " * 50_000)]})),
        (compact, msgspec.json.encode({"replacement": []})),
        (("PUT", "/v1/contexts/c1/messages/99/pin"), b""),
        (("DELETE", "/v1/contexts/" + "a" * 5000), b""),
        (("PUT", "/v1/policies/p"), b'{"strategy":"nope"}'),
    ]
    async with node_api(tmp_path) as api:
        await api.call("PUT", "/v1/contexts/c1", {"metadata": {"a": "x" * 100}})
        await api.call("POST", "/v1/contexts/c1/messages", {"messages": [text("one", id="m1"), text("two")]})
        before = [(await api.get(path)).body for path in paths]
        for (method, path), data in attempts:
            answer = await api.call(method, path, data=data, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status < 500, (path, data[:80], answer.status)
            assert answer.error
            assert [(await api.get(path)).body for path in paths] == before, (path, data[:80])
        assert (await api.call("POST", "/v1/contexts/c1/messages", {"message": text("three")})).json["seq"] == 3


async def test_answers_have_the_shapes_of_the_document(tmp_path: Path) -> None:
    """The window with a summary, a marker and a waiting call, and every other answer with content, decoded by the documented types."""
    call = {"type": "tool_call", "tool_call_id": "t", "name": "f", "input": {}}
    async with node_api(tmp_path) as api:
        await api.call("PUT", "/v1/policies/p1", {"strategy": "clear_tool_results", "config": {"keep_last": 1}})
        await api.call("PUT", "/v1/contexts/c1", {"policy": {"ref": "p1"}, "metadata": {"a": None}})
        await appended(api, "c1", 3)
        await api.call("POST", "/v1/contexts/c1/messages", {"message": {"role": "assistant", "parts": [call]}})
        await appended(api, "c1", 2)
        await api.call("POST", "/v1/contexts/c1/messages", {"message": text("mine", id="m", pinned=True)})
        rewritten = await api.call("POST", "/v1/contexts/c1/compact", {"replacement": [text("sum")], "covers": [1, 2]})
        assert rewritten.status == 200, rewritten.json
        for path, shape in (
            ("/v1/contexts/c1/context", schemas.WindowAnswerBody),
            ("/v1/contexts/c1/context?budget_tokens=1", schemas.WindowAnswerBody),
            ("/v1/contexts/c1/messages", schemas.MessagesAnswer),
            ("/v1/contexts/c1", schemas.ContextAnswer),
            ("/v1/contexts", schemas.ContextsAnswer),
            ("/v1/policies", schemas.PoliciesAnswer),
        ):
            msgspec.json.decode((await api.get(path)).body, type=shape)
        window = (await api.get("/v1/contexts/c1/context")).json
        assert [one["seq"] for one in window["messages"]] == [None, 3, 4, None, 5, 6, 7]
        floor = (await api.get("/v1/contexts/c1/context?budget_tokens=1")).json
        assert floor["over_budget"] and floor["over_budget_reason"]
