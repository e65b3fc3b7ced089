"""The OpenAPI description as a page to read, without scripts and without anything from elsewhere.

FastAPI's own page loads Swagger UI from a CDN, which a server on a closed network cannot show.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.1rem } code, pre { font: 14px/1.45 ui-monospace, monospace }
pre { padding: .8rem; overflow: auto; background: color-mix(in srgb, currentColor 8%, transparent) }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
"""


def page(schema: Mapping[str, Any]) -> str:
    """An HTML page of an OpenAPI schema: each operation with its fields, an example, and its answers."""
    info = schema["info"]
    operations = [
        _operation(method, path, operation, schema)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(info["title"])}</title>'
        f"<style>{_STYLE}</style><h1>{_text(info['title'])} {_text(info['version'])}</h1>"
        f"<p>{_text(info.get('description', ''))}</p>"
        '<p>For tools: <a href="openapi.json">openapi.json</a>.</p>' + "".join(operations)
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    parts = [
        f"<h2><code>{_text(method.upper())} {_text(path)}</code></h2><p>{_text(operation.get('description', ''))}</p>"
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append("<h3>Request</h3>" + _fields(body, schema))
        example = json.dumps(example_of(body, schema), ensure_ascii=False)
        quoted = example.replace("'", "'\\''")
        command = f"curl -H 'Content-Type: application/json' -d '{quoted}' http://127.0.0.1:8000{path}"
        parts.append(f"<pre>{_text(command)}</pre>")
    parts.append("<h3>Answers</h3><table>")
    for status, answer in operation["responses"].items():
        names = {name: content.get("schema", {}) for name, content in answer.get("content", {}).items()}
        shown = ", ".join(f"{_text(name)} {_type(shape)}" for name, shape in names.items())
        parts.append(f"<tr><th>{_text(status)}<td>{_text(answer.get('description', ''))}<td>{shown}")
    parts.append("</table>")
    answers = _named(operation["responses"].get("200", {}))
    parts += [f"<h3><code>{_text(name)}</code></h3>" + _fields({"$ref": _REF + name}, schema) for name in answers]
    return "".join(parts)


_REF = "#/components/schemas/"


def _named(value: Any) -> Iterable[str]:
    """The components that an answer refers to."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key == "$ref":
                yield each.removeprefix(_REF)
            else:
                yield from _named(each)
    elif isinstance(value, list):
        for each in value:
            yield from _named(each)


def _resolved(shape: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = shape.get("$ref")
    return shape if reference is None else schema["components"]["schemas"][reference.removeprefix(_REF)]


def _fields(shape: Mapping[str, Any], schema: Mapping[str, Any], indent: str = "") -> str:
    """A table of an object's fields, those of objects in it below them."""
    resolved = _resolved(shape, schema)
    rows = []
    for name, field in resolved.get("properties", {}).items():
        needed = "" if name in resolved.get("required", ()) else ", optional"
        about = field.get("description", "")
        rows.append(f"<tr><td><code>{indent}{_text(name)}</code><td>{_type(field)}{needed}<td>{_text(about)}")
        inner = field.get("items", field)
        if "$ref" in inner:
            rows.append(_fields(inner, schema, indent + "&nbsp;&nbsp;"))
    about = "" if indent else f"<p>{_text(resolved.get('description', ''))}</p>"
    return f"{about}<table>{''.join(rows)}</table>" if not indent else "".join(rows)


def _type(shape: Mapping[str, Any]) -> str:
    if "$ref" in shape:
        return _text(shape["$ref"].removeprefix(_REF))
    if "anyOf" in shape:
        return " or ".join(_type(each) for each in shape["anyOf"])
    if shape.get("type") == "array":
        return f"list of {_type(shape.get('items', {}))}"
    return _text(shape.get("const", shape.get("type", "anything")))


def example_of(shape: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """An example of a shape: its own, or one made of its fields'."""
    resolved = _resolved(shape, schema)
    if "examples" in resolved:
        return resolved["examples"][0]
    if resolved.get("type") == "array":
        return [example_of(resolved["items"], schema)]
    return {name: example_of(field, schema) for name, field in resolved.get("properties", {}).items()}


def _text(value: object) -> str:
    return html.escape(str(value))
