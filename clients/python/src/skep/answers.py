"""What calls of functions give: answers and samples; and what is asked for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from .errors import BrokenAnswer, ConfigError, Problem, problem
from .models import DeployLine, Function, FunctionSettings, Invocation
from .transport import Call, failure, part

Start = Literal["boot", "restore", "warm"]


@dataclass(frozen=True)
class Answer:
    """A function's answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is of success."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body, as UTF-8."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body, as JSON; ValueError if it is none."""
        return json.loads(self.body)

    @property
    def start(self) -> str:
        """How the instance that answered had started: boot, restore or warm."""
        return self.headers.get("Skep-Start", "")

    @property
    def invocation(self) -> str:
        """The id of its record."""
        return self.headers.get("Skep-Invocation", "")


def answer_of(response: httpx.Response) -> Answer:
    """The answer of a response that was read; raises what went wrong on skep's side."""
    if response.headers.get("Skep-Error"):
        raise failure(response)
    if "Skep-Invocation" not in response.headers and not response.is_success:
        raise failure(response)  # of the control API
    return Answer(response.status_code, response.headers, response.content)


def invocation_call(
    function: str, path: str, method: str | None, body: bytes | str | None, headers: Mapping[str, str] | None, start: str | None, policy: str | None
) -> dict[str, Any]:
    """Arguments of httpx's request for an invocation."""
    asked = Call(
        method or ("GET" if body is None else "POST"),
        f"/v1/functions/{part(function)}/invoke/{path.removeprefix('/')}",
        headers={**(headers or {}), "Skep-Start": start, "Skep-Policy": policy},
    ).parts()
    # Path and query are the caller's, as they are.
    del asked["params"]
    return {**asked, "content": body}


def body_of(data: bytes | str | None, value: Any, headers: Mapping[str, str] | None) -> tuple[bytes | str | None, Mapping[str, str] | None]:
    """A request's body and headers, of which value is to be sent as JSON."""
    if value is None:
        return data, headers
    if data is not None:
        raise ConfigError("both data and json are given: a request has one body")
    return json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}


FILES = ("oci:", "oci-archive:", "docker-archive:", "dir:")
BUILTIN = "functions/"


def image_of(image: str | os.PathLike[str]) -> str:
    """An image as the daemon takes it. A path is a directory: an OCI layout, or a root directory
    with skep-image.json in it. Paths become absolute, since the daemon, which reads them, has
    another working directory.
    """
    if isinstance(image, os.PathLike):
        path = Path(image).absolute()
        if (path / "oci-layout").exists():
            return f"oci:{path}"
        if (path / "skep-image.json").exists():
            return f"dir:{path}"
        raise ConfigError(f"{path} is neither an OCI layout nor a root directory with skep-image.json; of a file say oci-archive: or docker-archive:")
    for scheme in FILES:
        if image.startswith(scheme):
            return scheme + os.path.abspath(image.removeprefix(scheme))
    return image


def function_of(name: str, image: str | os.PathLike[str], settings: FunctionSettings) -> Function:
    """What a deploy asks for."""
    return Function(name=name, image=image_of(image), **settings)


def outcome(line: DeployLine) -> Function | None:
    """The function of the last line of a deploy; raises what it failed for."""
    if line.failure is not None:
        raise problem(line.failure.status, {"title": line.failure.title, "detail": line.failure.detail, "hint": line.failure.hint})
    return line.function


def broke_off() -> BrokenAnswer:
    """The error of a deploy's answer that ended without its last line."""
    return BrokenAnswer("the answer to a deploy broke off")


# A record is stored after the last byte of its answer has left: so long is waited for one.
RECORD_TRIES = 12


def record_pause(n: int, e: Problem) -> float:
    """How long to wait, in seconds, after a record was not there for the nth time."""
    if e.status != 404 or n + 1 == RECORD_TRIES:
        raise e
    return float(0.002 * 2**n)


@dataclass(frozen=True)
class Sample:
    """One measured invocation."""

    run: int
    variant: str  # as "restore reap"
    record: Invocation


def variants(starts: Sequence[Start], policies: Sequence[str] | None, offered: Sequence[str]) -> list[tuple[Start, str | None]]:
    """What takes turns in a measurement: restores under each policy, warm ones last."""
    out: list[tuple[Start, str | None]] = []
    for start in sorted(starts, key=("boot", "restore", "warm").index):
        out += [(start, p) for p in policies or offered] if start == "restore" else [(start, None)]
    return out


def turns(runs: int, kinds: Iterable[tuple[Start, str | None]]) -> Iterator[tuple[int, str, Start, str | None]]:
    """The order of a measurement: kinds take turns, so that a drifting machine is unfair to none."""
    listed = list(kinds)
    for run in range(runs):
        for start, policy in listed:
            yield run, f"{start} {policy}" if policy else start, start, policy


def must_be_good(answer: Answer, function: str) -> None:
    """Raises what spoils a measurement."""
    if not answer.ok:
        raise Problem(answer.status, f"{function} answered {answer.status}: {answer.text[:300]}")


@dataclass(frozen=True)
class Load:
    """What a load came to: its report, and a line for each call."""

    report: dict[str, Any]
    plan: dict[str, Any]
    calls: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Bench:
    """What a benchmark of starts measured: the machine, and its samples."""

    about: dict[str, Any]
    samples: list[Sample] = field(repr=False)
