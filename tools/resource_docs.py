"""Writes docs/resources.md: every field of both custom resources, from the CRDs. `python tools/resource_docs.py` (make docs-settings).

Knows OpenAPI schemas as CRDs use them. Does not know what the fields do: their descriptions say that.
"""

import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Resources

<!-- Made from crds/ by `make docs-settings`; do not edit. -->

Every field of the custom resources `contextstore.dev/v1alpha1`. What is refused is refused by the API server, with a sentence.

"""


def rows(at: str, schema: dict[str, Any]) -> list[str]:
    """A line of the table for each field below `schema`."""
    found = []
    for name, inner in (schema.get("properties") or {}).items():
        path = f"{at}.{name}" if at else name
        kind = inner.get("type", "any")
        items = inner.get("items") or {}
        if kind == "array":
            kind = f"list of {items.get('type', 'any')}"
        allowed = ", ".join(f"`{one}`" for one in inner.get("enum", []))
        if "minimum" in inner or "maximum" in inner:
            allowed = f"{inner.get('minimum', '')} to {inner.get('maximum', '')}"
        default = inner.get("default")
        shown = "" if default in (None, {}) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        found.append(f"| `{path}` | {kind} | {shown} | {allowed} | {inner.get('description', '')} |")
        found += rows(path, inner) + rows(f"{path}[]", items)
    return found


def document() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())["spec"]
        schema = crd["versions"][0]["schema"]["openAPIV3Schema"]
        short = ", ".join(crd["names"]["shortNames"])
        parts.append(f"## {crd['names']['kind']}\n\n{schema['description']} Short name `{short}`.\n\n")
        for part in ("spec", "status"):
            head = "| field | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n"
            parts.append(f"### {crd['names']['kind']} {part}\n\n{head}" + "\n".join(rows("", schema["properties"][part])) + "\n\n")
        rules = [rule["message"] for rule in schema["properties"]["spec"].get("x-kubernetes-validations", [])]
        if rules:
            parts.append("Also: " + "; ".join(rules) + ".\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "resources.md"
    target.write_text(document(), encoding="utf-8")
