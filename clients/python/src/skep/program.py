"""What the program `skep` does for this package: load in an open loop, cold starts from a cold page
cache, images of the functions that come with it. It measures; Python only starts and reads it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .answers import Bench, Load, Sample
from .errors import ConfigError, ProgramError
from .models import Invocation
from .settings import Settings
from .wire import decode


def command(program: str, settings: Settings | None, *args: str) -> list[str]:
    """A command line of the program; settings are of the daemon that it is for, if it is for one."""
    return [program, *(settings.flags() if settings else []), *args]


def _check(program: str, args: Sequence[str], code: int | None, out: bytes, err: bytes, fine: Sequence[int]) -> str:
    if code not in fine:
        raise ProgramError(f"{program} {args[0]} failed with exit code {code}: {err.decode(errors='replace').strip()[-2000:]}")
    return out.decode()


def _missing(program: str) -> ProgramError:
    return ProgramError(f"there is no program {program}: install skep, or say where it is (program=)")


def run(program: str, settings: Settings | None, *args: str, fine: Sequence[int] = (0,)) -> str:
    """Runs it and returns what it says; raises ProgramError unless its exit code is fine."""
    try:
        done = subprocess.run(command(program, settings, *args), capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as e:
        raise _missing(program) from e
    return _check(program, args, done.returncode, done.stdout, done.stderr, fine)


async def run_async(program: str, settings: Settings | None, *args: str, fine: Sequence[int] = (0,)) -> str:
    """Is run, to be awaited. The program ends when that is cancelled."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command(program, settings, *args), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except FileNotFoundError as e:
        raise _missing(program) from e
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()  # it removes what it has made
        await process.wait()
        raise
    return _check(program, args, process.returncode, out, err, fine)


class Outputs:
    """A directory for results that goes when nobody wants it."""

    def __init__(self, wanted: str | os.PathLike[str] | None):
        self._own = tempfile.TemporaryDirectory(prefix="skep-") if wanted is None else None
        self.path = Path(self._own.name if self._own else os.fspath(wanted or ""))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._own.cleanup()


def load_args(
    source: str | None, trace: str | os.PathLike[str] | None, function: str, duration: str, took: str, url: str, out: Path, more: Iterable[str]
) -> list[str]:
    """The command line of a load."""
    if (source is None) == (trace is None):
        raise ConfigError("want either source, as poisson:rate=10, or trace, a path")
    what = [os.fspath(trace)] if trace is not None else ["--source", source or "", "--duration", duration, "--function", function, "--took", took]
    return ["load", "--json", "--url", url, "--out", os.fspath(out), *more, *what]


LOAD_FINE = (0, 1)  # 1: calls were lost, which the report tells


def read_load(out: str | os.PathLike[str], said: str | None = None) -> Load:
    """What `skep load --out` left in a directory; said is what it reported."""
    plan: dict[str, Any] = {}
    calls = []
    for line in _lines(Path(out) / "calls.jsonl"):
        if "plan" in line:
            plan = line["plan"]
        elif "n" in line:
            calls.append(line)
    try:
        report = json.loads(said) if said is not None else {}
    except ValueError as e:
        raise ProgramError(f"skep load reported nothing: {e}") from e
    return Load(report, plan, calls)


def bench_args(
    function: str, path: str, runs: int, starts: Sequence[str], policies: Sequence[str] | None, cold: str, out: Path, more: Iterable[str]
) -> list[str]:
    """The command line of a benchmark of cold starts."""
    chosen = ["--policy", ",".join(policies)] if policies else []
    return [
        "bench", "start", "--function", function, "--path", path, "-n", str(runs), "--start", ",".join(starts), *chosen,
        "--cold", cold, "--out", os.fspath(out), *more,
    ]  # fmt: skip


def read_bench(file: str | os.PathLike[str]) -> Bench:
    """What `skep bench start --out` left in a file."""
    about: dict[str, Any] = {}
    samples = []
    for line in _lines(Path(file)):
        if "record" in line:
            samples.append(Sample(line["run"], line["variant"], decode(Invocation, line["record"])))
        elif "machine" in line:
            about = line
    return Bench(about, samples)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as f:
        for line in f:
            if line.endswith("\n"):  # the last may be torn
                yield json.loads(line)
