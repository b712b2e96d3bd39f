"""The OpenAPI 3.1 document, made from the table of routes and the types that validate.

Knows the routes' types. Nothing here is written by hand that a handler could contradict: fields, ranges and parameters come from
`schemas` and `queries`, statuses from `routes`. Invariant: the same version of the code makes the same bytes.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from context_node.http import schemas
from context_node.http.routing import Route

REF = "#/components/schemas/{name}"
PROBLEM = {"$ref": REF.format(name="Problem")}
ID_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9._:~@-]{1,256}$"}
STATUS_TEXT = {
    101: "Switching to WebSocket",
    200: "Done",
    201: "Created",
    204: "Done; no body",
    304: "Not modified",
    400: "A field or parameter is wrong; `details.field` names it",
    401: "No known API key",
    403: "The key lacks the scope",
    404: "There is no such context, message, policy or route",
    409: "The state does not allow it; `details` tell the current version",
    413: "Something is above its limit",
    415: "Not JSON",
    422: "Well-formed, but cannot be done",
    503: "Busy, stopping, or not confirmed in time; see `Retry-After`",
}
PARAMETER_TEXT = {
    "node": "A node of the cluster: its name or its number.",
    "shard": "The number of a shard; 65535 is the system group.",
    "id": "The context's id.",
    "name": "The policy's name.",
    "seq": "The message's seq.",
}


PARAMETER_SCHEMA = {
    "seq": {"type": "integer", "minimum": 1, "maximum": schemas.SEQ_MAX},
    "shard": {"type": "integer", "minimum": 0, "maximum": 65_535},
}


def document(routes: Iterable[Route], version: str) -> bytes:
    """The document as JSON."""
    listed = tuple(routes)
    return msgspec.json.format(msgspec.json.encode(build(listed, version)), indent=1)


def build(routes: tuple[Route, ...], version: str) -> dict[str, Any]:
    types: list[type] = [schemas.Problem, schemas.Part, schemas.Message]
    for route in routes:
        types.extend(one for one in (route.body, *route.answers.values()) if one is not None and one is not dict)
    _, components = msgspec.json.schema_components(list(dict.fromkeys(types)), ref_template=REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Context Store",
            "version": version,
            "description": "Conversations for LLM apps: durable histories, windows that always fit.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": {name: _plain(schema) for name, schema in components.items()},
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, `cs_…`."}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "tags": [route.tag], "summary": route.summary}
    if route.description:
        operation["description"] = route.description
    if route.scope is not None:
        operation["security"] = [{"apiKey": []}]
        operation["x-scope"] = route.scope.value
    else:
        operation["security"] = []
    parameters = [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = _request_body(route)
    operation["responses"] = _responses(route)
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in route.path.split("/") if segment.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARAMETER_TEXT[name],
            "schema": PARAMETER_SCHEMA.get(name, ID_SCHEMA),
        }
        for name in names
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    _, components = msgspec.json.schema_components([route.query], ref_template=REF)
    properties = components[route.query.__name__].get("properties", {})
    found = []
    for name, schema in properties.items():
        schema = _without_null(_plain(schema))
        description = schema.pop("description", "")
        found.append({"name": name, "in": "query", "required": False, "description": description, "schema": schema})
    return found


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    if not route.is_keyed:
        return []
    return [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "1 to 256 visible ASCII characters: a retry with it answers what the first try answered.",
            "schema": {"type": "string", "pattern": "^[!-~]{1,256}$"},
        }
    ]


def _request_body(route: Route) -> dict[str, Any]:
    assert route.body is not None
    schema = {"$ref": REF.format(name=route.body.__name__)}
    content: dict[str, Any] = {}
    for media in route.request_content_types:
        other = {"type": "object"} if media.endswith("json") else {"type": "string", "format": "binary"}
        content[media] = {"schema": schema if media == "application/json" else other}
    return {"required": True, "content": content}


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in sorted(route.answers.items()):
        response: dict[str, Any] = {"description": STATUS_TEXT[status]}
        if answer is not None:
            schema = {"type": "object"} if answer is dict else {"$ref": REF.format(name=answer.__name__)}
            response["content"] = {"application/json": {"schema": schema}}
        elif status == 200:
            response["content"] = {media: {"schema": {"type": "string"}} for media in route.content_types}
        responses[str(status)] = response
    for status in route.refusals:
        responses.setdefault(str(status), {"description": STATUS_TEXT[status], "content": {"application/json": {"schema": PROBLEM}}})
    return responses


def _plain(schema: Any) -> Any:
    """msgspec's schema with `x-items` for the items that it cannot know, and without defaults of null, which say nothing."""
    if isinstance(schema, dict):
        if "x-items" in schema:
            schema = {**schema, "items": schema["x-items"]}
            del schema["x-items"]
        return {name: _plain(value) for name, value in schema.items() if not (name == "default" and value is None)}
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    return schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, never null."""
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(options) == 1:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**options[0], **rest}
    return dict(schema)
