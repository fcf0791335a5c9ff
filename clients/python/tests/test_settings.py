from __future__ import annotations

from pathlib import Path

import pytest

from skep import ConfigError
from skep.settings import Settings, find


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("SOCKET", "ADDRESS", "CONTROL_TOKEN_FILE", "RUN_DIR", "CONFIG"):
        monkeypatch.delenv("SKEP_" + name, raising=False)
    monkeypatch.setattr("skep.settings.DEFAULT_FILE", str(tmp_path / "none.toml"))
    token = tmp_path / "token"
    token.write_text("secret\n")
    return token


def test_default() -> None:
    assert find() == Settings(socket="/run/skep/skep.sock")
    assert find(socket="/a").flags() == ["--address", "", "--socket", "/a"]


def test_environment_goes_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("run_dir = '/srv/run'\nlisten = '127.0.0.1:1'\n")
    assert find(config=file) == Settings(socket="/srv/run/skep.sock", config=str(file))
    monkeypatch.setenv("SKEP_CONFIG", str(file))
    assert find().socket == "/srv/run/skep.sock"
    monkeypatch.setenv("SKEP_RUN_DIR", "/other")
    assert find().socket == "/other/skep.sock"
    monkeypatch.setenv("SKEP_SOCKET", "/s")
    assert find().socket == "/s"
    assert find(socket="/mine").socket == "/mine"


def test_address(monkeypatch: pytest.MonkeyPatch, nothing_set: Path) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        find(address="127.0.0.1:7081")
    assert find(address="127.0.0.1:7081", token="t").token == "t"
    monkeypatch.setenv("SKEP_CONTROL_TOKEN_FILE", str(nothing_set))
    monkeypatch.setenv("SKEP_ADDRESS", "127.0.0.1:9")
    s = find()
    assert (s.address, s.token, s.base) == ("127.0.0.1:9", "secret", "http://127.0.0.1:9")
    assert s.flags() == ["--address", "127.0.0.1:9", "--control-token-file", str(nothing_set)]
    assert find(socket="/s").address == ""
    with pytest.raises(ConfigError, match="give token_file"):
        find(address="a:1", token="t").flags()


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        find(socket="/a", address="b:1")
    with pytest.raises(ConfigError, match="No such file"):
        find(config=tmp_path / "not.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        find(config=tmp_path / "bad.toml")
    (tmp_path / "kind.toml").write_text("socket = 7")
    with pytest.raises(ConfigError, match="want text"):
        find(config=tmp_path / "kind.toml")
    with pytest.raises(ConfigError, match="token"):
        find(address="a:1", token_file=tmp_path / "none")
