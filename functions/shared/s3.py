"""get(key): one object from the S3 server on the host, by a signed GET.

Signature version 4 in the standard library: boto3 would be most of a small
function's memory. Every call opens a connection of its own, so that none is
open when a snapshot is made.
"""

import hashlib
import hmac
import os
from datetime import datetime, timezone
from http.client import HTTPConnection
from urllib.parse import quote, urlsplit

ENDPOINT = os.environ.get("S3_ENDPOINT", "http://172.31.254.1:7090")
BUCKET = os.environ.get("S3_BUCKET", "functionbench")
ACCESS_KEY = os.environ.get("S3_ACCESS_KEY", "functionbench")
SECRET_KEY = os.environ.get("S3_SECRET_KEY", "functionbench")
REGION = os.environ.get("S3_REGION", "us-east-1")
EMPTY = hashlib.sha256(b"").hexdigest()


def get(key):
    host = urlsplit(ENDPOINT).netloc
    path = quote(f"/{BUCKET}/{key}")
    connection = HTTPConnection(host, timeout=60)
    try:
        connection.request("GET", path, headers=sign(host, path))
        response = connection.getresponse()
        body = response.read()
    except ConnectionError as e:
        raise OSError(f"{ENDPOINT} does not answer ({e}): does skep-s3 run on the host?") from e
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"GET {ENDPOINT}{path}: {response.status} {body[:500].decode(errors='replace')}")
    return body


def sign(host, path):
    """The headers of a GET without query and body."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": EMPTY, "x-amz-date": now}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"GET\n{path}\n\n{lines}\n{names}\n{EMPTY}"

    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{SECRET_KEY}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    )
    return headers
