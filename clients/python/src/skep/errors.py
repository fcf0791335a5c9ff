"""What can go wrong, as exceptions."""

from __future__ import annotations

from typing import Any


class SkepError(Exception):
    """Any error of this package's."""


class ConfigError(SkepError):
    """Settings that are missing, or wrong: nothing was asked of a daemon."""


class Unreachable(SkepError):
    """No daemon answers at an address."""

    def __init__(self, address: str, why: object):
        super().__init__(f"no daemon answers at {address}: {why}")
        self.address = address


class BrokenAnswer(SkepError):
    """The connection ended, or what came over it is not an answer of a daemon."""


class ProgramError(SkepError):
    """The program `skep` is not there, or has failed."""


class Problem(SkepError):
    """An answer that is not a success: a problem of RFC 9457, which says what failed, on which
    thing and why (detail), and often what to do (hint). function, invocation and instance are
    there when a request to a function failed on skep's side.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        title: str = "",
        hint: str = "",
        function: str = "",
        invocation: str = "",
        instance: str = "",
    ):
        super().__init__(f"{detail} ({hint})" if hint else detail)
        self.status = status
        self.detail = detail
        self.title = title
        self.hint = hint
        self.function = function
        self.invocation = invocation
        self.instance = instance


class NotFound(Problem):
    """A problem of status 404: no such function, instance, snapshot or invocation."""


def problem(status: int, body: Any) -> Problem:
    """The exception of a problem's fields."""
    fields = {k: v for k, v in body.items() if isinstance(v, str)} if isinstance(body, dict) else {}
    known = {k: fields.get(k, "") for k in ("title", "hint", "function", "invocation", "instance")}
    detail = fields.get("detail") or fields.get("title") or f"the daemon answered {status}"
    return (NotFound if status == 404 else Problem)(status, detail, **known)
