"""The OpenAPI document says what the node does, and the node does what it says."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from prometheus_client import CollectorRegistry
from schemathesis.checks import CHECKS, load_all_checks

from context_node.contexts.requests import Append, NewMessage, PutPolicy
from context_node.http import openapi
from context_node.http.app import build_app, serve
from context_node.http.limits import HttpLimits
from context_node.http.routes import all_routes
from context_node.runtime.node import Node, NodeOptions

ROUTES = all_routes(CollectorRegistry())
DOCUMENT: dict[str, Any] = msgspec.json.decode(openapi.document(ROUTES, "0.0.0"))
EXAMPLES = int(os.environ.get("CONTEXTSTORE_TEST_FUZZ_EXAMPLES", "25"))


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    documented = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert documented == {(route.method, route.path) for route in ROUTES}


def test_the_document_is_the_same_each_time() -> None:
    assert openapi.document(ROUTES, "1") == openapi.document(all_routes(CollectorRegistry()), "1")


def test_every_reference_of_the_document_leads_somewhere() -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"].rpartition("/")[2]
            for one in value.values():
                yield from references(one)
        elif isinstance(value, list):
            for one in value:
                yield from references(one)

    assert set(references(DOCUMENT)) == set(DOCUMENT["components"]["schemas"])


class RunningNode:
    """A real node in a thread with an event loop of its own: schemathesis asks from another."""

    def __init__(self, data_dir: Path) -> None:
        self.url = ""
        self.failures: list[BaseException] = []
        self._data_dir = data_dir
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        options = NodeOptions(str(self._data_dir), shards=4)
        node = Node(options, now_ms=lambda: time.time_ns() // 10**6, random_bytes=os.urandom, on_fatal=self.failures.append)
        await node.start()
        message = NewMessage("user", [{"type": "text", "text": "hi"}])
        await node.service.append("c1", Append([message] * 3, create=True))
        await node.service.put_policy("p1", PutPolicy("last_n"))
        limits = HttpLimits(message_bytes_max=100_000, batch_bytes_max=200_000, request_timeout_s=10)
        server = await serve(build_app(node.service, version="0.0.0", open_mode=True, limits=limits), "127.0.0.1", 0)
        self.url = server.url
        self._ready.set()
        await self._stop.wait()
        await server.stop()
        await node.stop()

    def __enter__(self) -> "RunningNode":
        self._thread.start()
        assert self._ready.wait(30) and self.url, self.failures
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        self._loop.close()
        assert self.failures == []


@pytest.fixture(scope="module")
def node_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RunningNode(tmp_path_factory.mktemp("fuzzed")) as node:
        yield node.url


load_all_checks()
CHECKED = [
    check
    for check in CHECKS.get_all()
    if check.__name__
    in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
        "allow_header_conformance",
    )
]
"""Left out: whether valid data is accepted (some fields exclude each other, which a schema of fields does not say), and whether invalid
data is refused, which the named tests of bad input say more exactly."""


@schemathesis.serializer("application/msgpack")
def packed(_context: Any, value: Any) -> bytes:
    """The body of the one route that takes MessagePack: the bytes that were drawn, or what was drawn in their place, packed."""
    data = getattr(value, "data", value)
    return data if isinstance(data, bytes) else msgspec.msgpack.encode(data, enc_hook=str)


# A stream does not end by itself; its refusals are in test_streams.
schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(operation_id="streamContext")


@pytest.mark.fuzz
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_s1_no_request_gets_a_5xx_or_an_undocumented_answer(case: schemathesis.Case, node_url: str) -> None:
    """S1, from the outside: whatever is asked, the answer is one of the document's, and the node goes on."""
    known = {"id": "c1", "name": "p1"}
    # Half of the requests go to things that exist, or nearly all would end at 404.
    if len(str(case.body)) % 2:
        for name in known.keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = known[name]
    # Asking for a version that does not exist yet is answered 503, as documented (SEMANTICS.md, Shapes): no fault.
    (case.query or {}).pop("min_version", None)
    assert len(CHECKED) == 7
    case.call_and_validate(base_url=node_url, checks=CHECKED, timeout=20)
