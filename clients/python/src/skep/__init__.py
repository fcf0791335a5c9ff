"""skep: serverless functions in microVMs that start from snapshots.

    import skep

    with skep.Client() as client:
        client.deploy("hello", "localhost:5000/hello:v1", memory_mib=256)
        answer = client.invoke("hello", start="restore", policy="reap")
        print(answer.text, client.record(answer).phases)

AsyncClient has the same to be awaited. models has what calls take and answer, frames makes frames of
pandas of records, samples and loads.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from . import frames, models
from .answers import Answer, Bench, Load, Sample
from .client import AsyncClient, Client
from .errors import BrokenAnswer, ConfigError, NotFound, Problem, ProgramError, SkepError, Unreachable
from .program import read_bench, read_load
from .transport import Page

try:
    __version__ = version("skep")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"

__all__ = [
    "Answer",
    "AsyncClient",
    "Bench",
    "BrokenAnswer",
    "Client",
    "ConfigError",
    "Load",
    "NotFound",
    "Page",
    "Problem",
    "ProgramError",
    "Sample",
    "SkepError",
    "Unreachable",
    "frames",
    "models",
    "read_bench",
    "read_load",
]
