"""`/docs`: the OpenAPI document as a page to read, served offline.

Knows the document only. The page is made here, once, as plain HTML without scripts: nothing to vendor, nothing that could fetch from
elsewhere. Invariant: every text from the document is escaped.
"""

from html import escape
from typing import Any

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:62rem;padding:1rem}
h1{margin-bottom:0}h2{border-bottom:1px solid var(--line);margin-top:2.5rem}
code,pre,.path{font-family:ui-monospace,monospace;font-size:.92em}
pre{background:var(--soft);overflow:auto;padding:.6rem}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}
table{border-collapse:collapse;width:100%}td,th{border-top:1px solid var(--line);padding:.25rem .5rem;text-align:left;vertical-align:top}
.method{border-radius:4px;color:#fff;display:inline-block;font-size:.8em;font-weight:700;padding:0 .4rem;text-align:center;width:3.6rem}
.get{background:#2468b4}.post{background:#257a3e}.put{background:#9a6700}.patch{background:#7a4aa8}.delete{background:#b42318}
.quiet{opacity:.75}
"""
SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


def page(document: dict[str, Any]) -> bytes:
    """The whole page."""
    info = document["info"]
    sections = "".join(_section(document, tag["name"]) for tag in document["tags"])
    schemas = "".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(info["title"])} API</h1><p class="quiet">version {escape(info["version"])} · '
        f'<a href="/openapi.json">openapi.json</a></p><p>{escape(info["description"])}</p>'
        "<p>Send your API key as <code>Authorization: Bearer cs_…</code>. Errors are "
        '<code>{"error", "message", "details"}</code>.</p>'
        f'{sections}<h2 id="shapes">Shapes</h2>{schemas}</body></html>'
    ).encode()


def _section(document: dict[str, Any], tag: str) -> str:
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    ]
    return f"<h2>{escape(tag)}</h2>{''.join(operations)}"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    scope = operation.get("x-scope")
    about = f"<p>{_prose(operation['description'])}</p>" if "description" in operation else ""
    about += f"<p>Needs a key with scope <code>{escape(scope)}</code>.</p>" if scope else "<p>Needs no key.</p>"
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><span class="method {method}">{method.upper()}</span> '
        f'<span class="path">{escape(path)}</span> <span class="quiet">{escape(operation["summary"])}</span></summary>'
        f"{about}{_parameters(operation)}{_body(operation)}{_responses(operation)}</details>"
    )


def _parameters(operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td><td>{_type(one['schema'])}</td>"
        f"<td>{_prose(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    )
    return f"<h4>Parameters</h4><table>{rows}</table>" if rows else ""


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    rows = "".join(f"<tr><td><code>{escape(media)}</code></td><td>{_type(one['schema'])}</td></tr>" for media, one in content.items())
    return f"<h4>Body</h4><table>{rows}</table>" if rows else ""


def _responses(operation: dict[str, Any]) -> str:
    rows = ""
    for status, response in operation["responses"].items():
        shapes = ", ".join(_type(one["schema"]) for one in response.get("content", {}).values())
        rows += f"<tr><td>{escape(status)}</td><td>{_prose(response['description'])}</td><td>{shapes}</td></tr>"
    return f"<h4>Answers</h4><table>{rows}</table>"


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else ' <span class=quiet>optional</span>'}</td>"
        f"<td>{_type(one)}</td><td>{_prose(one.get('description', ''))}</td></tr>"
        for field, one in schema.get("properties", {}).items()
    )
    about = f"<p>{_prose(schema.get('description', ''))}</p>"
    return f'<details id="shape-{escape(name)}"><summary><code>{escape(name)}</code></summary>{about}<table>{rows}</table></details>'


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to the shapes."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    limits = [f"{sign} {schema[name]}" for name, sign in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "length ≤")) if name in schema]
    default = [f"default {escape(str(schema['default']))}"] if "default" in schema else []
    return escape(kind) + "".join(f', <span class="quiet">{escape(one)}</span>' for one in (*limits, *default))


def _prose(text: str) -> str:
    """Escaped text, with `code` between backticks."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))
