"""A function whose random numbers differ between the clones of its snapshot.

Deploy it with --clone-hook /clone. Modules seed generators when they are
imported, which is before the snapshot: every clone would go on from the same
state. The hook gives each its own, before the clone's first request.
"""

import json
import os
import random
import ssl
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "EXAMPLE_SEED" in os.environ:  # two processes with one seed are as two clones
    random.seed(os.environ["EXAMPLE_SEED"])
ssl.RAND_bytes(1)  # OpenSSL seeds its generator at the first use


def renew(entropy):
    """Makes the generators of this process another clone's."""
    random.seed(entropy)
    ssl.RAND_add(entropy, len(entropy))


class Function(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({
            "random": f"{random.getrandbits(128):032x}",  # repeats without the hook
            "openssl": ssl.RAND_bytes(16).hex(),  # so does OpenSSL's
            "hash": hash("bee"),  # repeats always: the seed of hashes is for the life of the process
            "kernel": os.urandom(16).hex(),  # never repeats
            "uuid": str(uuid.uuid4()),  # nor does this, which is made of os.urandom
        })

    def do_POST(self):
        hook = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        renew(bytes.fromhex(hook["entropy"]))
        self.answer({})

    def answer(self, what):
        body = json.dumps(what).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), Function).serve_forever()
