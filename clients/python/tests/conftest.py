"""A server of HTTP on a unix socket that answers as a test says, and a client of it."""

from __future__ import annotations

import http.server
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import skep


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What it is answered with."""

    body: bytes = b"{}"
    status: int = 200
    media: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    promised: int = 0  # bytes beyond the body that are announced and do not come


Handler = Callable[[Asked], Reply]


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Handler], Path]]:
    """Serves with a handler at the socket that is returned."""
    servers: list[Server] = []

    def start(handler: Handler) -> Path:
        class Request(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = handler(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.media)
                self.send_header("Content-Length", str(len(reply.body) + reply.promised))
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

            def address_string(self) -> str:
                return "a unix socket"

        path = tmp_path / f"s{len(servers)}.sock"
        servers.append(Server(str(path), Request))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return path

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def client_of(serve: Callable[[Handler], Path]) -> Iterator[Callable[[Handler], skep.Client]]:
    """A client of a server with a handler."""
    clients: list[skep.Client] = []

    def connect(handler: Handler) -> skep.Client:
        clients.append(skep.Client(socket=serve(handler), timeout=20))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
