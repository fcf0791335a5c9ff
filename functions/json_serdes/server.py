"""json_serdes: a JSON document from S3, read and written again.

The documents are of different sizes, so the memory that a request touches
changes with its input.
"""

import json
from hashlib import sha256

import s3
from serve import serve


def convert(n):
    text = s3.get(f"json_serdes/{n}.json")
    hives = json.loads(text)
    out = json.dumps(hives, indent=4)
    return {
        "hives": len(hives),
        "bees": sum(hive["bees"] for hive in hives),
        "read": len(text),
        "written": len(out),
        "sha256": sha256(out.encode()).hexdigest(),
    }


if __name__ == "__main__":
    serve(convert)
