#!/usr/bin/env python3
"""Writes src/skep/models.py and src/skep/operations.py from the API's document.

    python3 generate.py           write them
    python3 generate.py --check   say whether they are what it would write

Needs nothing but Python. What is not made here is in NOT_MADE, with its reason; a test
holds the client to making, or naming there, every operation of the document.
"""

from __future__ import annotations

import json
import keyword
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent / "control" / "openapi.json"
PACKAGE = HERE / "src" / "skep"

NOT_MADE = {
    "execInFunction": "an upgrade to a protocol of frames, which `skep exec` speaks",
    "execInInstance": "an upgrade to a protocol of frames, which `skep exec` speaks",
    **{
        f"invoke{method}": "Client.invoke, whose answer is the function's own"
        for method in ("Delete", "Get", "Head", "Options", "Patch", "Post", "Put")
    },
}

NOTE = "# Made by generate.py from control/openapi.json: change those, not this.\n"

MODELS = '''"""What the API's calls take and answer. Fields whose names end in _us and _ns are integers of that
unit; what is None was not told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict

'''

OPERATIONS = '''"""The calls of the API, as its document has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, Literal

'''

Schema = dict[str, Any]


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def identifier(name: str) -> str:
    name = name.lower().replace("-", "_")
    return name + "_" if keyword.iskeyword(name) else name


def reference(ref: str) -> str:
    return ref.rsplit("/", 1)[1]


def type_of(schema: Schema) -> str:
    """The type in Python of what a schema describes."""
    if "$ref" in schema:
        return reference(schema["$ref"])
    if "enum" in schema:
        return "Literal[" + ", ".join(json.dumps(v) for v in schema["enum"]) + "]"
    kinds = schema.get("type", "object")
    if isinstance(kinds, list):
        (kind,) = [k for k in kinds if k != "null"]
        return type_of({**schema, "type": kind}) + " | None"
    if kinds == "array":
        items = schema["items"]
        if schema_is_pair(items):
            return "list[tuple[int, int]]"
        return f"list[{type_of(items)}]"
    if kinds == "object":
        values = schema.get("additionalProperties")
        return f"dict[str, {type_of(values) if isinstance(values, dict) else 'Any'}]"
    if kinds == "string" and schema.get("format") == "date-time":
        return "datetime"
    return {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}[kinds]


def schema_is_pair(schema: Schema) -> bool:
    return schema.get("type") == "array" and schema.get("minItems") == schema.get("maxItems") == 2


def comment(text: str | None, indent: str) -> str:
    if not text:
        return ""
    return "".join(f"{indent}#: {line}\n" for line in textwrap.wrap(text, 96 - len(indent), break_long_words=False))


def docstring(text: str, indent: str) -> str:
    lines = textwrap.wrap(text.replace("\\", "\\\\"), 96 - len(indent), break_long_words=False)
    if len(lines) == 1:
        return f'{indent}"""{lines[0]}"""\n'
    return f'{indent}"""' + f"\n{indent}".join(lines) + f'\n{indent}"""\n'


def model(name: str, schema: Schema) -> str:
    required = schema.get("required", [])
    out = "@dataclass(frozen=True, kw_only=True)\n" + f"class {name}:\n"
    out += docstring(schema.get("description", name), "    ") + "\n"
    for field, of in sorted(schema["properties"].items(), key=lambda f: f[0] not in required):
        kind = type_of(of)
        out += comment(of.get("description"), "    ")
        if field in required:
            out += f"    {field}: {kind}\n"
        else:
            out += f"    {field}: {kind if kind.endswith('| None') else kind + ' | None'} = None\n"
    return out


def typed_dict(name: str, about: str, properties: Schema) -> str:
    out = f"class {name}(TypedDict, total=False):\n" + docstring(about, "    ") + "\n"
    for field, of in properties.items():
        out += comment(of.get("description"), "    ") + f"    {field}: {type_of(of)}\n"
    return out


def models(document: Schema) -> str:
    schemas = document["components"]["schemas"]
    function = schemas["Function"]["properties"]
    settings = {k: v for k, v in function.items() if k not in ("name", "image") and not v.get("readOnly")}
    patch = document["paths"]["/v1/functions/{name}"]["patch"]["requestBody"]["content"]["application/merge-patch+json"]["schema"]
    parts = [model(name, schema) for name, schema in schemas.items()]
    parts.append(typed_dict("FunctionSettings", "Settings of a function beside its name and image: those of Function.", settings))
    parts.append(typed_dict("FunctionPatch", patch["description"], patch["properties"]))
    head = NOTE + MODELS
    names = sorted([*schemas, "FunctionSettings", "FunctionPatch"])
    head += "__all__ = [\n" + "".join(f'    "{n}",\n' for n in names) + "]\n\n\n"
    return head + "\n\n".join(parts)


class Operation:
    """One call of the document, and the method that makes it."""

    def __init__(self, method: str, path: str, of: Schema):
        self.method, self.path, self.of = method.upper(), path, of
        self.name = snake(of["operationId"])
        self.parameters: list[Schema] = of.get("parameters", [])
        self.content: Schema = of["responses"]["200"]["content"]

    def body(self) -> tuple[str, str] | None:
        """The type of what it takes, and its media type."""
        for media, content in self.of.get("requestBody", {}).get("content", {}).items():
            if media == "application/merge-patch+json":
                return "FunctionPatch", media
            return type_of(content["schema"]), media
        return None

    def answer(self, is_async: bool) -> tuple[str, str, str]:
        """Which method of the transport makes the call, the type that it is given, and what it returns."""
        ((media, content),) = self.content.items()
        several = "AsyncIterator" if is_async else "Iterator"
        if media == "application/x-ndjson":
            item = type_of(content["x-item-schema"])
            return "_lines", item, f"{several}[{item}]"
        if media == "text/event-stream":
            item = type_of(content["x-item-schema"])
            return "_events", item, f"{several}[{item}]"
        if media in ("text/plain", "image/svg+xml"):
            if any(p["name"] == "follow" for p in self.parameters):
                return "_text_lines", "", f"{several}[str]"
            return "_text", "", "str"
        schema = content["schema"]
        if schema.get("maxProperties") == 0:
            return "_nothing", "", "None"
        kind = type_of(schema)
        if schema.get("type") == "array" and any(p["name"] == "after" for p in self.parameters):
            item = type_of(schema["items"])
            return "_page", item, f"Page[{item}]"
        return "_json", kind, kind

    def arguments(self) -> str:
        positional = [f"{identifier(p['name'])}: {type_of(p['schema'])}" for p in self.parameters if p["in"] == "path"]
        if body := self.body():
            positional.append(f"body: {body[0]}")
        named = [
            f"{identifier(p['name'])}: {type_of(p['schema'])} | None = None"
            for p in self.parameters
            if p["in"] != "path"
        ]
        return ", ".join(["self", *positional, *(["*"] if named else []), *named])

    def call(self) -> str:
        path = re.sub(r"\{(\w+)\}", lambda m: "{part(" + identifier(m[1]) + ")}", self.path)
        out = [repr(self.method).replace("'", '"'), ('f"' if "{" in path else '"') + path + '"']
        for where, argument in (("query", "query"), ("header", "headers")):
            given = [p["name"] for p in self.parameters if p["in"] == where]
            if given:
                out.append(argument + "={" + ", ".join(f'"{n}": {identifier(n)}' for n in given) + "}")
        if body := self.body():
            out += ["body=body", f'media="{body[1]}"']
        return "Call(" + ", ".join(out) + ")"

    def write(self, is_async: bool) -> str:
        how, kind, returns = self.answer(is_async)
        streams = how in ("_lines", "_events", "_text_lines")
        prefix = "async def" if is_async and not streams else "def"
        out = f"    {prefix} {self.name}({self.arguments()}) -> {returns}:\n"
        about = self.of["summary"]
        told = [f"{identifier(p['name'])}: {p['description']}" for p in self.parameters if p.get("description")]
        if not told:
            out += docstring(about, "        ")
        else:
            out += f'        """{about}\n\n'
            for line in told:
                out += textwrap.fill(line, 96, initial_indent="        ", subsequent_indent="            ") + "\n"
            out += '        """\n'
        called = f"self.{how}({self.call()}{', ' + kind if kind else ''})"
        out += "        " + ("" if returns == "None" else "return ") + ("await " if is_async and not streams else "") + called + "\n"
        return out


def operations(document: Schema) -> str:
    all_of = [
        Operation(method, path, of)
        for path, methods in document["paths"].items()
        for method, of in methods.items()
        if isinstance(of, dict) and "operationId" in of and of["operationId"] not in NOT_MADE
    ]
    used = set()
    parts = []
    for name, base, is_async in (("Operations", "Transport", False), ("AsyncOperations", "AsyncTransport", True)):
        written = [o.write(is_async) for o in all_of]
        about = "The calls of the API, one each" + (", to be awaited." if is_async else ".")
        parts.append(f"class {name}({base}):\n" + docstring(about, "    ") + "\n" + "\n".join(written))
        used |= set(re.findall(r"\b[A-Z]\w+\b", "\n".join(re.sub(r'"""(.|\n)*?"""', "", w) for w in written)))
    known = sorted(used & {*document["components"]["schemas"], "FunctionPatch"})
    head = NOTE + OPERATIONS
    head += "from .models import (\n" + "".join(f"    {n},\n" for n in known) + ")\n"
    head += "from .transport import AsyncTransport, Call, Page, Transport, part\n\n\n"
    return head + "\n\n".join(parts)


def made(document: Schema) -> dict[Path, str]:
    """What is made of a document: texts by the files that they belong in."""
    return {PACKAGE / "models.py": models(document), PACKAGE / "operations.py": operations(document)}


def main() -> None:
    stale = False
    for path, text in made(json.loads(DOCUMENT.read_text())).items():
        if path.exists() and path.read_text() == text:
            continue
        if sys.argv[1:] == ["--check"]:
            print(f"{path} is not what the API's document says: run python3 {Path(__file__).name}", file=sys.stderr)
            stale = True
        else:
            path.write_text(text)
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
