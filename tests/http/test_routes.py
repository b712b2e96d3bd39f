"""Every route answers what the contract says (PRODUCT.md, HTTP API)."""

from support.edge_api import Api, edge_api
from support.fake_service import FakeService

TEXT = {"role": "user", "parts": [{"type": "text", "text": "hi"}]}


async def test_put_creates_with_201_and_changes_with_200() -> None:
    async with edge_api(FakeService()) as api:
        made = await api.call("PUT", "/v1/contexts/c1", {"token_budget": 1000, "metadata": {"a": 1}})
        assert made.status == 201
        assert made.headers["Location"] == "/v1/contexts/c1"
        assert made.json["token_budget"] == 1000
        assert made.json["metadata"] == {"a": 1}
        assert made.json["created_at"] == "2026-01-01T00:00:00.000Z"
        assert made.json["tombstoned_at"] is None
        changed = await api.call("PUT", "/v1/contexts/c1", {"token_budget": 2000})
        assert (changed.status, changed.json["token_budget"]) == (200, 2000)
        assert "Location" not in changed.headers


async def test_put_and_post_take_no_body_as_all_defaults() -> None:
    async with edge_api(FakeService()) as api:
        assert (await api.call("PUT", "/v1/contexts/c1")).status == 201
        made = await api.call("POST", "/v1/contexts")
        assert made.status == 201
        assert made.headers["Location"] == "/v1/contexts/" + made.json["id"]


async def test_a_context_is_shown_and_unknown_ones_are_404() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        shown = await api.get("/v1/contexts/c1")
        assert shown.status == 200
        assert (shown.json["id"], shown.json["last_seq"], shown.json["version"]) == ("c1", 1, 1)
        assert shown.headers["X-Context-Leader"] == "node-0"
        missing = await api.get("/v1/contexts/nope")
        assert (missing.status, missing.error) == (404, "context_not_found")


async def test_append_answers_seq_version_and_estimate() -> None:
    async with edge_api(FakeService()) as api:
        await api.call("PUT", "/v1/contexts/c1", {})
        one = await api.call("POST", "/v1/contexts/c1/messages", {"message": TEXT})
        assert (one.status, one.json) == (201, {"seq": 1, "version": 1, "token_estimate": 1})
        many = await api.call("POST", "/v1/contexts/c1/messages", {"messages": [TEXT, TEXT]})
        assert many.json == {"seq": 3, "version": 2, "token_estimate": 2, "first_seq": 2, "last_seq": 3}


async def test_append_creates_a_context_only_when_asked() -> None:
    async with edge_api(FakeService()) as api:
        assert (await api.call("POST", "/v1/contexts/c1/messages", {"message": TEXT})).status == 404
        assert (await api.call("POST", "/v1/contexts/c1/messages?create=false", {"message": TEXT})).status == 404
        assert (await api.call("POST", "/v1/contexts/c1/messages?create=true", {"message": TEXT})).status == 201


async def test_a_wrong_version_is_409_and_tells_the_current_one() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        refused = await api.append("c1", if_version=7)
        assert (refused.status, refused.error) == (409, "version_conflict")
        assert refused.json["details"]["version"] == 1
        assert (await api.append("c1", if_version=1)).status == 201


async def test_pages_join_messages_as_they_are_kept() -> None:
    async with edge_api(FakeService()) as api:
        for text in "abc":
            await api.append("c1", text)
        page = await api.get("/v1/contexts/c1/messages?from_seq=2&limit=1")
        assert page.status == 200
        assert [m["parts"][0]["text"] for m in page.json["messages"]] == ["b"]
        assert page.json["last_seq"] == 3
        newest_first = await api.get("/v1/contexts/c1/messages?direction=desc")
        assert [m["seq"] for m in newest_first.json["messages"]] == [3, 2, 1]
        assert [m["seq"] for m in (await api.get("/v1/contexts/c1/messages?from_seq=-1")).json["messages"]] == [3]
        tail = await api.get("/v1/contexts/c1/tail?offset=1&limit=1")
        assert [m["seq"] for m in tail.json["messages"]] == [2]


async def test_an_unchanged_window_is_304() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        window = await api.get("/v1/contexts/c1/context")
        assert window.status == 200
        assert window.headers["Cache-Control"] == "no-cache"
        tag = window.headers["ETag"]
        assert tag.startswith('"')
        for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            same = await api.get("/v1/contexts/c1/context", {"If-None-Match": header})
            assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag), header
            assert "Content-Length" not in same.headers
        await api.append("c1")
        assert (await api.get("/v1/contexts/c1/context", {"If-None-Match": tag})).status == 200


async def test_a_window_guarded_by_if_version_is_409_when_it_moved_on() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        assert (await api.get("/v1/contexts/c1/context?if_version=1")).status == 200
        assert (await api.get("/v1/contexts/c1/context?if_version=0")).status == 409
        assert (await api.get("/v1/contexts/c1/context?consistency=local&min_version=9")).status == 503


async def test_what_comes_later_says_so() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        answers = [
            await api.get("/v1/contexts/c1/context?format=openai"),
            await api.get("/v1/contexts/c1/context?at_version=1"),
            await api.call("POST", "/v1/contexts/c1/fork", {}),
            await api.call("POST", "/v1/contexts/c1/compact", {"replacement": [], "dry_run": True}),
        ]
        assert [(one.status, one.error) for one in answers] == [(422, "not_available")] * 4
        assert [one.json["details"]["feature"] for one in answers] == ["format", "at_version", "fork", "dry_run"]


async def test_compact_takes_each_form_and_refuses_mixtures() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        await api.append("c1")
        path = "/v1/contexts/c1/compact"
        for body in (
            {"replacement": [TEXT]},
            {"replacement": [TEXT], "covers": [1, 1], "if_version": 2},
            {"replacement": [], "through_seq": 1},
            {"rebuild": True},
        ):
            answer = await api.call("POST", path, body)
            assert (answer.status, list(answer.json)) == (200, ["version"]), answer.json
        assert [call.covers for call in service.calls] == [None, (1, 1), None, None]
        for body, status, field in (
            ({}, 400, "replacement"),
            ({"rebuild": True, "replacement": []}, 400, "replacement"),
            ({"replacement": [], "covers": [1, 2], "through_seq": 2}, 400, "through_seq"),
            ({"replacement": [], "covers": [2, 1]}, 422, "covers"),
            ({"replacement": [], "covers": [1]}, 400, "covers"),
            ({"replacement": [], "covers": [0, 1]}, 400, "covers[0]"),
        ):
            refused = await api.call("POST", path, body)
            assert (refused.status, refused.field) == (status, field), refused.json


async def test_metadata_is_patched_in_both_forms() -> None:
    async with edge_api(FakeService()) as api:
        await api.call("PUT", "/v1/contexts/c1", {"metadata": {"a": 1, "b": 2}})
        path = "/v1/contexts/c1/metadata"
        assert (await api.call("PATCH", path, {"metadata": {"a": None}})).json["metadata"] == {"b": 2}
        merged = await api.call("PATCH", path, {"c": 3}, {"Content-Type": "application/merge-patch+json"})
        assert (merged.status, merged.json["metadata"]) == (200, {"b": 2, "c": 3})
        assert (await api.call("PATCH", path, {"c": 3})).field == "c"


async def test_delete_tombstones_and_purge_erases() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        gone = await api.call("DELETE", "/v1/contexts/c1")
        assert (gone.status, gone.body) == (204, b"")
        assert "Content-Length" not in gone.headers
        assert (await api.append("c1")).error == "context_tombstoned"
        assert (await api.get("/v1/contexts/c1")).json["status"] == "tombstoned"
        assert (await api.call("DELETE", "/v1/contexts/c1?purge=true")).status == 204
        assert (await api.get("/v1/contexts/c1")).status == 404


async def test_pins_are_window_rewrites() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        assert (await api.call("PUT", "/v1/contexts/c1/messages/1/pin")).json == {"version": 1}
        assert (await api.call("DELETE", "/v1/contexts/c1/messages/1/pin")).status == 200
        assert (await api.call("PUT", "/v1/contexts/c1/messages/2/pin")).error == "message_not_found"
        for seq in ("0", "-1", "x", "1.0", "%31%30x", "9" * 20, "%D9%A3"):
            assert (await api.call("PUT", f"/v1/contexts/c1/messages/{seq}/pin")).field == "seq"


async def test_lists_pass_filters_on_and_give_a_cursor() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        for name in ("a1", "a2", "a3", "b1"):
            await api.call("PUT", f"/v1/contexts/{name}", {})
        first = await api.get("/v1/contexts?prefix=a&limit=2&order=id&status=any&metadata.team=x%20y&metadata.n=1")
        assert [one["id"] for one in first.json["contexts"]] == ["a1", "a2"]
        assert service.calls[-1].metadata == {"team": "x y", "n": "1"}
        rest = await api.get(f"/v1/contexts?prefix=a&cursor={first.json['next_cursor']}")
        assert ([one["id"] for one in rest.json["contexts"]], rest.json["next_cursor"]) == (["a3"], None)


async def test_export_streams_json_lines() -> None:
    async with edge_api(FakeService()) as api:
        for text in "ab":
            await api.append("c1", text)
        export = await api.get("/v1/contexts/c1/export")
        assert export.status == 200
        assert export.headers["Content-Type"] == "application/x-ndjson"
        assert [line[:8] for line in export.body.splitlines()] == [b'{"seq":1', b'{"seq":2']
        assert (await api.get("/v1/contexts/nope/export")).error == "context_not_found"


async def test_policies_by_name() -> None:
    async with edge_api(FakeService()) as api:
        body = {"strategy": "last_n", "config": {"limit": 5}, "token_budget": 100}
        made = await api.call("PUT", "/v1/policies/p1", body)
        assert (made.status, made.json["generation"], made.json["config"]) == (200, 1, {"limit": 5})
        assert (await api.get("/v1/policies/p1")).json == made.json
        assert (await api.get("/v1/policies")).json == {"policies": [made.json]}
        assert (await api.call("DELETE", "/v1/policies/p1")).status == 204
        assert (await api.get("/v1/policies/p1")).error == "policy_not_found"


async def test_health_tells_live_from_ready() -> None:
    service = FakeService()
    async with edge_api(service) as api:
        assert (await api.get("/health/live")).json == {"status": "live", "version": "0.0.0"}
        assert (await api.get("/health/ready")).json == {"status": "ready", "version": "0.0.0"}
        service.is_ready, service.reason = False, "recovering"
        unready = await api.get("/health/ready")
        assert (unready.status, unready.json["reason"]) == (503, "recovering")
        assert (await api.get("/health/live")).status == 200
        service.is_ready = True
        api.server.edge.is_draining = True
        assert (await api.get("/health/ready")).json["reason"] == "the node is stopping"


async def test_metrics_count_routes_and_classes() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        await api.get("/v1/contexts/nope")
        await api.get("/nowhere")
        text = (await api.get("/metrics")).body.decode()
        assert 'contextstore_http_requests_total{route="/v1/contexts/{id}/messages",status="2xx"} 1.0' in text
        assert 'contextstore_http_requests_total{route="/v1/contexts/{id}",status="4xx"} 1.0' in text
        assert 'contextstore_http_requests_total{route="none",status="4xx"} 1.0' in text
        assert 'contextstore_http_request_duration_seconds_bucket{le="+Inf",route="/v1/contexts/{id}/messages"} 1.0' in text
        assert "contextstore_http_requests_in_flight 1.0" in text


async def test_head_answers_as_get_without_a_body() -> None:
    async with edge_api(FakeService()) as api:
        await api.append("c1")
        whole = await api.get("/v1/contexts/c1/context")
        head = await api.call("HEAD", "/v1/contexts/c1/context")
        assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(whole.body)))
        assert (await api.get("/health/live")).status == 200, "the connection is still in step"


async def test_other_paths_and_methods_are_404_and_405_in_the_error_shape() -> None:
    async with edge_api(FakeService()) as api:
        for path in ("/", "/v1", "/v2/contexts", "/v1/contexts/a/b", "/v1/contexts/a/context/", "//v1/contexts", "/v1/%63ontexts"):
            assert (await api.get(path)).error == "route_not_found", path
        for method, path, allow in (
            ("POST", "/v1/contexts/a", "DELETE, GET, HEAD, PUT"),
            ("DELETE", "/v1/contexts", "GET, HEAD, POST"),
            ("HEAD", "/v1/contexts/a/stream", "GET"),
            ("OPTIONS", "/v1/contexts", "GET, HEAD, POST"),
            ("PROPFIND", "/health/live", "GET, HEAD"),
        ):
            answer = await api.call(method, path)
            assert (answer.status, answer.headers["Allow"]) == (405, allow)


async def test_every_answer_has_a_request_id_and_takes_a_sane_one() -> None:
    async with edge_api(FakeService()) as api:
        first, second = await api.get("/health/live"), await api.get("/nowhere")
        assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]
        assert (await api.get("/nowhere", {"X-Request-Id": "abc-1"})).headers["X-Request-Id"] == "abc-1"
        for insane in ("a b", "x" * 200, "<script>", ""):
            assert (await api.get("/health/live", {"X-Request-Id": insane})).headers["X-Request-Id"] != insane


async def _window_with(api: Api, accept: str) -> tuple[str | None, bytes, str]:
    answer = await api.get("/v1/contexts/c1/context", {"Accept-Encoding": accept})
    return answer.headers.get("Content-Encoding"), answer.body, answer.headers["ETag"]


async def test_large_answers_are_compressed_when_asked() -> None:
    import gzip

    import zstandard

    service = FakeService()
    async with edge_api(service) as api:
        await api.append("c1", "x" * 5000)
        plain = (await _window_with(api, "identity"))[1]
        coding, body, tag = await _window_with(api, "gzip, deflate")
        assert (coding, gzip.decompress(body), tag[:2]) == ("gzip", plain, "W/")
        coding, body, _ = await _window_with(api, "gzip, zstd;q=1.0, br")
        assert (coding, zstandard.ZstdDecompressor().decompress(body, max_output_size=100_000)) == ("zstd", plain)
        assert (await _window_with(api, "zstd;q=0, gzip;q=0"))[0] is None
        assert (await _window_with(api, "*"))[0] == "zstd"
        assert (await _window_with(api, "br"))[0] is None
        await api.append("c1", "x" * 200_000)
        coding, body, _ = await _window_with(api, "gzip")
        assert len(gzip.decompress(body)) > 200_000, "compressed beside the loop"
        assert "Content-Encoding" not in (await api.get("/health/live", {"Accept-Encoding": "gzip"})).headers


async def test_docs_and_the_document_are_served_offline() -> None:
    async with edge_api(FakeService()) as api:
        document = await api.get("/openapi.json")
        assert document.json["openapi"] == "3.1.0"
        page = await api.get("/docs")
        assert page.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert b"<script" not in page.body and b"https://" not in page.body
        assert b"/v1/contexts/{id}/messages" in page.body
