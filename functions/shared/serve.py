"""What the ten functions share: an HTTP server around one handler.

GET /?input=N answers with handle(N) as JSON. N goes from 1 to inputs and is 1
where the request does not say; the inputs differ in content, some in size.
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from traceback import print_exc
from urllib.parse import parse_qs, urlsplit


def serve(handle, inputs=4):
    """Serves on $PORT, which opens only now: what is slow to load comes before."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open between requests
        wbufsize = -1  # header and body leave together

        def do_GET(self):
            wanted = parse_qs(urlsplit(self.path).query).get("input", ["1"])[0]
            if not wanted.isascii() or not wanted.isdigit() or not 1 <= int(wanted) <= inputs:
                return self.answer(400, {"error": f"input {wanted!r}: want 1 to {inputs}"})
            try:
                self.answer(200, handle(int(wanted)))
            except Exception as e:  # the function's log has the rest
                print_exc()
                self.answer(500, {"error": f"{type(e).__name__}: {e}"})

        def answer(self, status, result):
            body = json.dumps(result).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass  # a line for each request would be most of the work

    port = int(os.environ.get("PORT", "8080"))
    server = Server(("", port), Handler)
    print(f"listening on port {port}", flush=True)
    server.serve_forever()


class Server(ThreadingHTTPServer):
    def server_bind(self):
        TCPServer.server_bind(self)  # HTTPServer's would ask DNS for its own name
