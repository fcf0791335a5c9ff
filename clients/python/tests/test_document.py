"""The client is what the API's document says: its models and calls are made from it, and every
operation is there, in both clients, with the same arguments.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import skep

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent.parent / "control" / "openapi.json"

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="needs the repository, in which the API's document is: git clone it")


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", HERE.parent / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(DOCUMENT.read_text())


def test_made(generate: Any, document: Any) -> None:
    for path, text in generate.made(document).items():
        assert path.read_text() == text, f"{path} is stale: run python3 generate.py"


def test_every_operation(generate: Any, document: Any) -> None:
    seen = set()
    for path, methods in document["paths"].items():
        for of in methods.values():
            name = of.get("operationId")
            if name in generate.NOT_MADE:
                seen.add(name)
                continue
            for client in (skep.Client, skep.AsyncClient):
                method = getattr(client, generate.snake(name), None)
                assert method is not None, f"{client.__name__} has no {name}"
                has = set(inspect.signature(method).parameters) - {"self", "body"}
                assert has == {generate.identifier(p["name"]) for p in of.get("parameters", [])}, (path, name)
    assert seen == set(generate.NOT_MADE), "generate.py names operations that there are not"


def test_every_field(document: Any) -> None:
    for name, schema in document["components"]["schemas"].items():
        fields = getattr(skep.models, name).__dataclass_fields__
        assert set(fields) == set(schema["properties"]), name


def test_clients_are_alike() -> None:
    def public(of: type) -> dict[str, Any]:
        return {n: inspect.signature(m).parameters for n, m in inspect.getmembers(of, inspect.isfunction) if not n.startswith("_")}

    one, other = public(skep.Client), public(skep.AsyncClient)
    assert one == other
