"""How calls get to a daemon and answers back: over HTTP, on its unix socket or over TCP."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from .errors import BrokenAnswer, Problem, Unreachable, problem
from .settings import Settings
from .wire import EventData, Lines, decode, encode, text

T = TypeVar("T")

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Call:
    """One call: of what is None nothing is sent."""

    method: str
    path: str
    query: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: object = None
    media: str = ""

    def parts(self) -> dict[str, Any]:
        """Arguments of a request of httpx."""
        headers = {k: v for k, v in self.headers.items() if v is not None}
        content = None
        if self.media:
            content = json.dumps(encode(self.body)).encode()
            headers["Content-Type"] = self.media
        params = {k: text(v) for k, v in self.query.items() if v is not None}
        return {"method": self.method, "url": self.path, "params": params, "headers": headers, "content": content}


def part(value: str) -> str:
    """A value as one part of a path."""
    return urllib.parse.quote(value, safe="")


class Page(list[T], Generic[T]):
    """What a list answered. after, when it is not None, is what to call it with again for those
    that come after these.
    """

    after: str | None = None


def _page(of: type[T], response: httpx.Response) -> Page[T]:
    items: list[T] = _decoded(list[of], response.text)  # type: ignore[valid-type]
    page = Page(items)
    for target, relation in re.findall(r'<([^>]*)>\s*;\s*rel="?(\w+)"?', response.headers.get("Link", "")):
        if relation == "next":
            page.after = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(target).query)).get("after")
    return page


def _decoded(of: type[T], value: str) -> T:
    try:
        return decode(of, json.loads(value))
    except ValueError as e:
        raise BrokenAnswer(f"the daemon sent what is not as its document says: {e}") from e


def failure(response: httpx.Response) -> Problem:
    """The exception of an answer that is no success, and was read."""
    body: Any = None
    if response.headers.get("Content-Type", "").split(";")[0].strip() == PROBLEM:
        with suppress(ValueError):  # whoever wrote that
            body = json.loads(response.content)
    return problem(response.status_code, body or {"detail": f"{response.status_code}: {response.text[:1000]}".strip()})


def _options(settings: Settings, timeout: float | None) -> dict[str, Any]:
    """What both of httpx's clients are made with. Nobody but the caller sets a limit to how long
    an answer may take, since deploys and events take as long as they do; the environment's
    proxies are not for the control API.
    """
    headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    return {
        "base_url": settings.base,
        "headers": headers,
        "trust_env": False,
        "timeout": httpx.Timeout(timeout, connect=10.0, pool=None),
    }


@contextmanager
def _errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as e:
        raise Unreachable(settings.where, e) from e
    except httpx.HTTPError as e:
        raise BrokenAnswer(f"{settings.where}: {e or type(e).__name__}") from e


class Transport:
    """Makes calls, and waits for their answers."""

    def __init__(self, settings: Settings, timeout: float | None = None):
        self.settings = settings
        transport = httpx.HTTPTransport(uds=settings.socket or None, limits=httpx.Limits(max_connections=None))
        self._http = httpx.Client(transport=transport, **_options(settings, timeout))

    def close(self) -> None:
        """Drops its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _open(self, call: Call) -> Iterator[httpx.Response]:
        with _errors(self.settings), self._http.stream(**call.parts()) as response:
            if not response.is_success:
                response.read()
                raise failure(response)
            yield response

    def _send(self, call: Call) -> httpx.Response:
        with self._open(call) as response:
            response.read()
            return response

    def _nothing(self, call: Call) -> None:
        self._send(call)

    def _text(self, call: Call) -> str:
        return self._send(call).text

    def _json(self, call: Call, of: type[T]) -> T:
        return _decoded(of, self._send(call).text)

    def _page(self, call: Call, of: type[T]) -> Page[T]:
        return _page(of, self._send(call))

    def _text_lines(self, call: Call) -> Iterator[str]:
        lines = Lines()
        with self._open(call) as response:
            for more in response.iter_bytes():
                yield from lines.feed(more)
        yield from lines.end()

    def _lines(self, call: Call, of: type[T]) -> Iterator[T]:
        for line in self._text_lines(call):
            yield _decoded(of, line)

    def _events(self, call: Call, of: type[T]) -> Iterator[T]:
        events = EventData()
        for line in self._text_lines(call):
            if (data := events.feed(line)) is not None:
                yield _decoded(of, data)


class AsyncTransport:
    """Makes calls; what waits for an answer is to be awaited."""

    def __init__(self, settings: Settings, timeout: float | None = None):
        self.settings = settings
        transport = httpx.AsyncHTTPTransport(uds=settings.socket or None, limits=httpx.Limits(max_connections=None))
        self._http = httpx.AsyncClient(transport=transport, **_options(settings, timeout))

    async def close(self) -> None:
        """Drops its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @asynccontextmanager
    async def _open(self, call: Call) -> AsyncIterator[httpx.Response]:
        with _errors(self.settings):
            async with self._http.stream(**call.parts()) as response:
                if not response.is_success:
                    await response.aread()
                    raise failure(response)
                yield response

    async def _send(self, call: Call) -> httpx.Response:
        async with self._open(call) as response:
            await response.aread()
            return response

    async def _nothing(self, call: Call) -> None:
        await self._send(call)

    async def _text(self, call: Call) -> str:
        return (await self._send(call)).text

    async def _json(self, call: Call, of: type[T]) -> T:
        return _decoded(of, (await self._send(call)).text)

    async def _page(self, call: Call, of: type[T]) -> Page[T]:
        return _page(of, await self._send(call))

    async def _text_lines(self, call: Call) -> AsyncIterator[str]:
        lines = Lines()
        async with self._open(call) as response:
            async for more in response.aiter_bytes():
                for line in lines.feed(more):
                    yield line
        for line in lines.end():
            yield line

    async def _lines(self, call: Call, of: type[T]) -> AsyncIterator[T]:
        async for line in self._text_lines(call):
            yield _decoded(of, line)

    async def _events(self, call: Call, of: type[T]) -> AsyncIterator[T]:
        events = EventData()
        async for line in self._text_lines(call):
            if (data := events.feed(line)) is not None:
                yield _decoded(of, data)
