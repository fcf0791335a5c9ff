"""Where the daemon is, found as the program `skep` finds it: from what the caller says, else the
environment, else the configuration file.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError

DEFAULT_FILE = "/etc/skep/config.toml"
DEFAULT_RUN_DIR = "/run/skep"


@dataclass(frozen=True)
class Settings:
    """One of socket, a path, and address, HOST:PORT with its token."""

    socket: str = ""
    address: str = ""
    token: str = ""
    token_file: str = ""  # where token is from, if it is from a file
    config: str = ""  # the file that was named, or ""

    @property
    def base(self) -> str:
        """What URLs begin with."""
        return f"http://{self.address}" if self.address else "http://skep"

    @property
    def where(self) -> str:
        """The daemon, as errors name it."""
        return self.address or self.socket

    def flags(self) -> list[str]:
        """What tells the program `skep` the same."""
        given = ["--config", self.config] if self.config else []
        if not self.address:
            # An address goes before a socket there, so that the environment's must not count.
            return [*given, "--address", "", "--socket", self.socket]
        if not self.token_file:
            raise ConfigError("the program skep takes the token from a file: give token_file instead of token")
        return [*given, "--address", self.address, "--control-token-file", self.token_file]


def find(
    *,
    socket: str | os.PathLike[str] | None = None,
    address: str | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Settings:
    """Settings from what is given, else SKEP_SOCKET, SKEP_ADDRESS, SKEP_CONTROL_TOKEN_FILE and
    SKEP_RUN_DIR, else the file config, SKEP_CONFIG or /etc/skep/config.toml; a socket or an address
    that is given goes before any other of both.
    """
    if socket is not None and address is not None:
        raise ConfigError("both socket and address are given: a daemon is at one of them")
    file = _file(os.fspath(config) if config is not None else None)

    def setting(name: str, given: str | os.PathLike[str] | None = None) -> str:
        if given is not None:
            return os.fspath(given)
        value = os.environ.get("SKEP_" + name.upper(), file.get(name, ""))
        if not isinstance(value, str):
            raise ConfigError(f"the configuration's {name} is {value!r}: want text")
        return value

    named = os.fspath(config) if config is not None else ""
    where = "" if socket is not None else setting("address", address)
    if not where:
        path = setting("socket", socket) or os.path.join(setting("run_dir") or DEFAULT_RUN_DIR, "skep.sock")
        return Settings(socket=path, config=named)
    if token is not None:
        return Settings(address=where, token=token, config=named)
    from_file = setting("control_token_file", token_file)
    if not from_file:
        raise ConfigError(f"the control API at {where} needs a token: give token or token_file, or set SKEP_CONTROL_TOKEN_FILE")
    try:
        token = Path(from_file).read_text().strip()
    except OSError as e:
        raise ConfigError(f"reading the control API's token: {e}") from e
    return Settings(address=where, token=token, token_file=from_file, config=named)


def _file(named: str | None) -> dict[str, Any]:
    path = named or os.environ.get("SKEP_CONFIG") or ""
    try:
        return tomllib.loads(Path(path or DEFAULT_FILE).read_text())
    except FileNotFoundError as e:
        if path:
            raise ConfigError(f"reading the configuration: {e}") from e
        return {}
    except (OSError, ValueError) as e:
        raise ConfigError(f"reading the configuration {path or DEFAULT_FILE}: {e}") from e
