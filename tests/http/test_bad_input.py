"""Bad input is a clear 4xx that names the field, and changes nothing (S1; never a 500 for what a client sends)."""

import gzip
from typing import Any

import msgspec
import pytest

from context_node.http.limits import HttpLimits
from support.edge_api import JSON, Api, edge_api
from support.fake_service import FakeService
from support.waiting import until

MESSAGES = "/v1/contexts/c1/messages?create=true"
TEXT = {"role": "user", "parts": [{"type": "text", "text": "hi"}]}


def digest(service: FakeService) -> bytes:
    """All that the service holds."""
    return msgspec.json.encode([[name, kept.view, [m.decode() for m in kept.messages]] for name, kept in sorted(service.kept.items())])


async def refused(data: bytes, status: int = 400, path: str = MESSAGES, headers: dict[str, str] | None = None) -> Any:
    """Send a body to a node that has a context; it must be refused with `status` and change nothing. Gives the error answer."""
    service = FakeService()
    async with edge_api(service) as api:
        await api.append("c1")
        before = digest(service)
        answer = await api.call("POST", path, data=data, headers=JSON if headers is None else headers)
        assert answer.status == status, (answer.status, answer.body[:300])
        assert answer.error
        assert digest(service) == before
        assert (await api.append("c1")).status == 201, "the node serves on"
        return answer.json


def with_part(text: bytes) -> bytes:
    return b'{"message":{"role":"user","parts":[{"type":"x","v":' + text + b"}]}}"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "body"),
        (b"   ", "body"),
        (b"{", "body"),
        (b"nonsense", "body"),
        (b'{"message":}', "body"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}]}} trailing', "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'"text"', "body"),
        (b"\xef\xbb\xbf{}", "body"),
        (b"{}", "message"),
        (b'{"message":{"role":"user"}}', "message"),
        (b'{"message":null}', "message"),
        (b'{"message":[]}', "message"),
        (b'{"messages":[]}', "messages"),
        (b'{"messages":{}}', "messages"),
        (b'{"message":{"role":"user","parts":[]}}', "message.parts"),
        (b'{"message":{"role":"user","parts":[1]}}', "message.parts[0]"),
        (b'{"message":{"role":"user","parts":[{}]}}', "message.parts[0].type"),
        (b'{"message":{"role":"user","parts":[{"type":""}]}}', "message.parts[0].type"),
        (b'{"message":{"role":"user","parts":[{"type":7}]}}', "message.parts[0].type"),
        (b'{"message":{"role":"user","parts":[{"type":"text"}]}}', "message.parts[0].text"),
        (b'{"message":{"role":"user","parts":[{"type":"text","text":null}]}}', "message.parts[0].text"),
        (b'{"message":{"role":"a","parts":[{"type":"tool_call","name":"f"}]}}', "message.parts[0].tool_call_id"),
        (b'{"message":{"role":"","parts":[{"type":"x"}]}}', "message.role"),
        (b'{"message":{"role":"User","parts":[{"type":"x"}]}}', "message.role"),
        (b'{"message":{"role":"user\\n","parts":[{"type":"x"}]}}', "message.role"),
        (b'{"message":{"role":"' + b"a" * 33 + b'","parts":[{"type":"x"}]}}', "message.role"),
        (b'{"message":{"parts":[{"type":"x"}]}}', "message.role"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"token_count":-1}}', "message.token_count"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"token_count":1.5}}', "message.token_count"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"token_count":"1"}}', "message.token_count"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"token_count":true}}', "message.token_count"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"metadata":[]}}', "message.metadata"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"id":""}}', "message.id"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"id":7}}', "message.id"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"tokencount":7}}', "message.tokencount"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}],"content":"x"}}', "message.content"),
        (b'{"messages":[{"role":"user","parts":[{"type":"x"}]},{"role":"user"}]}', "messages[1]"),
        (b'{"messages":[{"role":"user","parts":[{"type":"x"},{"type":"text"}]}]}', "messages[0].parts[1].text"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}]},"if_version":"1"}', "if_version"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}]},"if_version":99999999999999999999}', "if_version"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}]},"ifVersion":1}', "ifVersion"),
        (b'{"message":{"role":"user","parts":[{"type":"x"}]},"messages":[]}', "messages"),
    ],
)  # fmt: skip
async def test_a_body_that_is_wrong_is_400_and_names_the_field(data: bytes, field: str) -> None:
    assert (await refused(data))["details"]["field"] == field


@pytest.mark.parametrize(
    "value",
    [
        b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e999", b"01", b"+1", b".5", b"1.", b"0x10", b"'a'", b"undefined",
        b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\ud83d\\ude00\\ude00"', b'"\xed\xa0\x80"',
        b'"\xff"', b'"\xc0\x80"', b'"\xf5\x80\x80\x80"', b'"\x01"', b'"\\x"', b'"\\u12"', b'"open',
        b"9223372036854775808", b"-9223372036854775809", b"9" * 400, b"9" * 5000, b'{"deep":[99999999999999999999]}',
    ],
)  # fmt: skip
async def test_what_is_not_i_json_is_refused(value: bytes) -> None:
    await refused(with_part(value))


@pytest.mark.parametrize("value", [b"9223372036854775807", b"-9223372036854775808", b"1e308", b'"\\ud83d\\ude00"', b'"\\u0000"', b"-0.0"])
async def test_the_last_of_i_json_is_taken(value: bytes) -> None:
    async with edge_api(FakeService()) as api:
        answer = await api.call("POST", MESSAGES, data=with_part(value), headers=JSON)
        assert answer.status == 201, answer.body


async def test_of_equal_keys_the_last_wins() -> None:
    async with edge_api(FakeService()) as api:
        assert (await api.call("POST", MESSAGES, data=with_part(b'1,"v":2'), headers=JSON)).status == 201
        kept = (await api.get("/v1/contexts/c1/messages")).json["messages"][0]
        assert kept["parts"] == [{"type": "x", "v": 2}]


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        with_part(b"[" * 100_000 + b"]" * 100_000),
        with_part(b"[" * 61 + b"]" * 61),
        with_part(b'[{"' + b'\\"' * 1000 + b'":' + b"[" * 70 + b"]" * 70 + b"}]"),
        b"[],{}" * 1_000_000,
    ],
)
async def test_deep_nesting_is_refused_before_it_is_decoded(data: bytes) -> None:
    await refused(data)


async def test_nesting_up_to_the_limit_and_brackets_in_strings_are_taken() -> None:
    async with edge_api(FakeService()) as api:
        for value in (b"[" * 60 + b"]" * 60, b'"' + b"[{" * 5000 + b'"', b"[" + b"[]," * 5000 + b"[]]"):
            answer = await api.call("POST", MESSAGES, data=with_part(value), headers=JSON)
            assert answer.status == 201, answer.body


async def test_what_is_above_its_limit_is_413() -> None:
    limits = HttpLimits(message_bytes_max=2000, batch_bytes_max=10_000, metadata_bytes_max=100, parts_max=3, batch_messages_max=4)
    service = FakeService()
    async with edge_api(service, limits=limits) as api:
        await api.append("c1")
        before = digest(service)
        big = {"role": "user", "parts": [{"type": "text", "text": "x" * 3000}]}
        bodies: list[tuple[Any, str]] = [
            ({"message": big}, "message"),
            ({"messages": [TEXT, big]}, "messages[1]"),
            ({"messages": [TEXT] * 5}, "messages"),
            ({"message": {"role": "user", "parts": [{"type": "x"}] * 4}}, "message.parts"),
            ({"message": {**TEXT, "metadata": {"a": "x" * 200}}}, "message.metadata"),
            ({"message": {"role": "user", "parts": [{"type": "text", "text": "x" * 20_000}]}}, "body"),
        ]
        for body, field in bodies:
            answer = await api.call("POST", MESSAGES, body)
            assert (answer.status, answer.field) == (413, field), answer.json
        assert (await api.call("PUT", "/v1/contexts/c1", {"metadata": {"a": "x" * 200}})).status == 413
        assert digest(service) == before


async def test_a_body_above_the_limit_is_not_read_to_its_end() -> None:
    limits = HttpLimits(message_bytes_max=1000, batch_bytes_max=1000)
    async with edge_api(FakeService(), limits=limits) as api:
        declared = b"POST /v1/contexts/c1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        assert (await api.raw(declared + b"{}")).startswith(b"HTTP/1.1 413 ")
        chunked = b"POST /v1/contexts/c1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        endless = chunked + b"400\r\n" + b"x" * 1024 + b"\r\n"
        assert (await api.raw(endless)).startswith(b"HTTP/1.1 413 ")


async def test_a_compressed_bomb_is_bounded_by_what_it_becomes() -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    answer = await refused(bomb, 413, headers={**JSON, "Content-Encoding": "gzip"})
    assert answer["error"] == "too_large"


async def test_a_compressed_body_is_taken_and_a_broken_one_refused() -> None:
    body = gzip.compress(msgspec.json.encode({"message": TEXT}))
    async with edge_api(FakeService()) as api:
        headers = {**JSON, "Content-Encoding": "gzip"}
        assert (await api.call("POST", MESSAGES, data=body, headers=headers)).status == 201
        assert (await api.call("POST", MESSAGES, data=b"not gzip at all", headers=headers)).status == 400


async def test_a_wrong_content_type_is_415_and_none_is_json() -> None:
    data = msgspec.json.encode({"message": TEXT})
    for content_type in (
        "text/plain", "application/xml", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "json", ";",
        "application/merge-patch+json",
    ):  # fmt: skip
        assert (await refused(data, 415, headers={"Content-Type": content_type}))["error"] == "unsupported_media_type"
    async with edge_api(FakeService()) as api:
        for headers in ({}, {"Content-Type": "application/json; charset=UTF-8"}, {"Content-Type": "Application/JSON"}):
            assert (await api.call("POST", MESSAGES, data=data, headers=headers)).status == 201


@pytest.mark.parametrize(
    ("context_id", "status"),
    [
        ("a" * 256, 404), ("a" * 257, 400), ("a%2Fb", 400), ("%2e%2e", 400), ("%2E", 400), ("..", 400), (".", 400), ("a%00b", 400),
        ("%ff", 400), ("%C3%A9", 400), ("a%20b", 400), ("a+b", 400), ("a%0Ab", 400), ("%", 400), ("%zz", 400), ("", 400),
        ("a.b_c:d~e@f-g", 404), ("...", 404), ("%61", 404),
    ],
)  # fmt: skip
async def test_ids_are_checked_after_decoding(context_id: str, status: int) -> None:
    async with edge_api(FakeService()) as api:
        answer = await api.get(f"/v1/contexts/{context_id}")
        assert answer.status == status
        assert answer.error == ("context_not_found" if status == 404 else "invalid_request")


async def test_an_encoded_id_is_the_same_context() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("user:1@x")
        for name in ("user:1@x", "user%3A1%40x", "%75ser:1@x"):
            assert (await api.get(f"/v1/contexts/{name}")).json["id"] == "user:1@x"


async def test_an_id_of_a_mebibyte_is_a_clear_400() -> None:
    async with edge_api(FakeService()) as api:
        answer = await api.raw(b"GET /v1/contexts/" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"error":"invalid_request"' in answer
        assert (await api.get("/health/live")).status == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"), ("limit=1e2", "limit"),
        ("limit=1.0", "limit"), ("limit=", "limit"), ("limit=%2010", "limit"), ("limit=1_0", "limit"), ("limit=" + "9" * 5000, "limit"),
        ("limit=%D9%A3", "limit"), ("from_seq=" + "9" * 19, "from_seq"),
        ("from_seq=-" + "9" * 30, "from_seq"), ("from_seq=1,2", "from_seq"),
        ("direction=up", "direction"), ("consistency=maybe", "consistency"), ("limt=1", "limt"), ("limit=1&limit=2", "limit"),
        ("%ff=1", "query"), ("limit=%ff", "query"), ("min_version=-1", "min_version"), ("&".join(f"a{n}=1" for n in range(100)), "query"),
    ],
)  # fmt: skip
async def test_query_parameters_are_checked_by_name(query: str, field: str) -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        answer = await api.get(f"/v1/contexts/c1/messages?{query}")
        assert (answer.status, answer.field) == (400, field), answer.json


async def test_unknown_parameters_are_refused_on_every_route() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        for method, path in (
            ("PUT", "/v1/contexts/c1"), ("GET", "/v1/contexts/c1"), ("DELETE", "/v1/contexts/c1"), ("PATCH", "/v1/contexts/c1/metadata"),
            ("GET", "/v1/contexts"), ("POST", "/v1/contexts"), ("POST", "/v1/contexts/c1/messages"), ("GET", "/v1/contexts/c1/messages"),
            ("GET", "/v1/contexts/c1/tail"), ("GET", "/v1/contexts/c1/context"), ("POST", "/v1/contexts/c1/compact"),
            ("GET", "/v1/contexts/c1/stream"), ("GET", "/v1/contexts/c1/export"), ("PUT", "/v1/contexts/c1/messages/1/pin"),
            ("GET", "/v1/policies"), ("PUT", "/v1/policies/p"), ("GET", "/v1/policies/p"), ("DELETE", "/v1/policies/p"),
        ):  # fmt: skip
            answer = await api.call(method, path + "?purge_all=1")
            assert (answer.status, answer.field) == (400, "purge_all"), (method, path, answer.json)


async def test_a_bad_idempotency_key_is_400() -> None:
    data = msgspec.json.encode({"message": TEXT})
    for key in ("", " ", "a b", "x" * 257, "é"):
        answer = await refused(data, headers={**JSON, "Idempotency-Key": key})
        assert answer["details"]["field"] == "Idempotency-Key"


async def test_policies_and_configurations_that_cannot_be_meant_are_refused() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        bodies: list[tuple[Any, str]] = [
            ({"token_budget": 0}, "token_budget"),
            ({"token_budget": 10_000_001}, "token_budget"),
            ({"token_budget": "8"}, "token_budget"),
            ({"trigger_ratio": 0}, "trigger_ratio"),
            ({"trigger_ratio": 1.01}, "trigger_ratio"),
            ({"target_ratio": 1}, "target_ratio"),
            ({"trigger_ratio": 0.5, "target_ratio": 0.5}, "target_ratio"),
            ({"policy": {}}, "policy"),
            ({"policy": {"strategy": "last_n", "ref": "x"}}, "policy"),
            ({"policy": {"ref": "x", "config": {}}}, "policy.config"),
            ({"policy": "last_n"}, "policy"),
            ({"policy": {"strategy": "last_n", "limit": 3}}, "policy.limit"),
            ({"metadata": 1}, "metadata"),
            ({"budget": 1}, "budget"),
        ]
        for body, field in bodies:
            answer = await api.call("PUT", "/v1/contexts/c1", body)
            assert (answer.status, answer.field) == (400, field), answer.json
        for body, field in (({}, "strategy"), ({"strategy": ""}, "strategy"), ({"strategy": "x", "config": 1}, "config")):
            answer = await api.call("PUT", "/v1/policies/p", body)
            assert (answer.status, answer.field) == (400, field), answer.json
        assert (service.kept, service.policies) == ({}, {})


async def broken(api: Api, data: bytes) -> bytes:
    answer = await api.raw(data)
    assert (await api.get("/health/live")).status == 200
    return answer


async def test_broken_http_leaves_the_node_serving() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        await api.append("c1")
        before = digest(service)
        head = b"POST /v1/contexts/c1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        await api.cut_off(head + b'Content-Length: 500\r\n\r\n{"message"')
        await api.cut_off(head + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"mes')
        await until(lambda: api.server.edge.metrics.in_flight == 0, "the requests that broke off to be over")
        assert (await broken(api, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")).split()[1] == b"400"
        for nonsense in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nBad Header\r\n\r\n"):
            answer = await broken(api, nonsense)
            assert answer.split()[1] == b"400" and b'"bad_http"' in answer, answer
            assert b"Traceback" not in answer
        assert (await broken(api, b"GET http://x/v1/contexts/c1 HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert digest(service) == before


async def test_a_chunked_body_is_a_body() -> None:
    async with edge_api(FakeService()) as api:
        body = msgspec.json.encode({"message": TEXT})
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[n : n + 7]), body[n : n + 7]) for n in range(0, len(body), 7))
        head = b"POST " + MESSAGES.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await api.raw(head + chunks + b"0\r\n\r\n")).startswith(b"HTTP/1.1 201 ")


async def test_expectations_are_met_only_when_the_body_is_wanted() -> None:
    async with edge_api(FakeService()) as api:
        body = msgspec.json.encode({"message": TEXT})
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\nExpect: %b\r\n\r\n"
        met = await api.raw(head % (MESSAGES.encode(), len(body), b"100-continue") + body)
        assert met.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")
        assert (await api.raw(head % (MESSAGES.encode(), len(body), b"miracles") + body)).startswith(b"HTTP/1.1 417 ")
        assert (await api.raw(head % (b"/nowhere", len(body), b"100-continue"))).startswith(b"HTTP/1.1 404 ")


async def test_http_1_0_is_answered_and_closed() -> None:
    async with edge_api(FakeService()) as api:
        assert b"Connection: close" in await api.raw(b"GET /health/live HTTP/1.0\r\n\r\n")
        two = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await api.raw(two, answers=2)).count(b'{"status":"live"') == 2
