"""JSON and lines on the wire, to and from the classes of models."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from . import models

T = TypeVar("T")


@cache
def _fields(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of, vars(models))


def decode(of: type[T], value: Any) -> T:
    """What JSON's value is, as a type of models, a list or a dict of some. Fields that the type
    does not have are ignored, since a newer daemon may tell more; those that are not there, or
    are something else than the type says, raise ValueError.
    """
    return typing.cast(T, _decode(of, value, ""))


def _decode(of: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(of)
    if of is Any:
        return value
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        (other,) = [a for a in typing.get_args(of) if a is not types.NoneType]
        return _decode(other, value, where)
    if origin is typing.Literal:
        return _expect(str, value, where)  # a newer daemon may have others
    if origin is list:
        (item,) = typing.get_args(of)
        return [_decode(item, v, f"{where}[{i}]") for i, v in enumerate(_expect(list, value, where))]
    if origin is tuple:
        return tuple(_decode(t, v, where) for t, v in zip(typing.get_args(of), _expect(list, value, where), strict=True))
    if origin is dict:
        item = typing.get_args(of)[1]
        return {k: _decode(item, v, f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
    if dataclasses.is_dataclass(of):
        return _decode_class(of, _expect(dict, value, where), where)
    if of is datetime:
        return datetime.fromisoformat(_expect(str, value, where))
    if of is float:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else _expect(float, value, where)
    return _expect(of, value, where)


def _decode_class(of: Any, value: dict[str, Any], where: str) -> Any:
    given = {}
    for field in dataclasses.fields(of):
        if field.name in value:
            given[field.name] = _decode(_fields(of)[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{of.__name__}{where} has no {field.name}")
    return of(**given)


def _expect(of: type, value: Any, where: str) -> Any:
    if not isinstance(value, of) or (of is int and isinstance(value, bool)):
        raise ValueError(f"{where or 'the answer'} is {value!r:.80}: want {of.__name__}")
    return value


def encode(value: Any) -> Any:
    """What JSON has for a value of models, without what is None in it. A dict's None stays: it is
    how a patch says the default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: encode(v) for k, v in fields.items() if v is not None}
    if isinstance(value, dict):
        return {k: encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, datetime):
        return value.astimezone().isoformat()
    return value


def text(value: object) -> str:
    """A parameter as a query has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(encode(value))


class Lines:
    """Cuts bytes into lines at newlines alone: what a function writes may have any other
    character that begins a line to Python.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, more: bytes) -> Iterator[str]:
        """The lines that are whole now, without their ends."""
        *whole, self._rest = (self._rest + more).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")

    def end(self) -> Iterator[str]:
        """The last line, if it had no end."""
        if self._rest:
            yield self._rest.decode(errors="replace")


class EventData:
    """Reads server-sent events line by line."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> str | None:
        """The data of an event that ends with this line."""
        line = line.removesuffix("\r")
        if line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        if line or not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        return data
