"""A hello function in Python's standard library: HTTP/1.1 on $PORT."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open between requests
    wbufsize = -1  # header and body leave together

    def do_GET(self):
        name = parse_qs(urlsplit(self.path).query).get("name", ["world"])[0]
        self.answer(f"Hello, {name}!\n".encode())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass  # a line for each request would be most of the work


class Server(ThreadingHTTPServer):
    def server_bind(self):
        TCPServer.server_bind(self)  # HTTPServer's would ask DNS for its own name


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    server = Server(("", port), Hello)
    print(f"hello-python: listening on port {port}", flush=True)
    server.serve_forever()
