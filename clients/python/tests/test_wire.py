from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from skep.models import DeployLine, Function, Invocation, PageMap, SnapshotRule
from skep.wire import EventData, Lines, decode, encode, text

RECORD: dict[str, Any] = {
    "id": "a1", "function": "hello", "time": "2026-01-31T12:00:00.123456789Z", "phases": {"total_us": 12, "spawn_us": 3},
    "bytes_in": 0, "bytes_out": 5, "status": 200, "start": "restore", "of_a_newer_daemon": {"x": 1},
}  # fmt: skip


def test_decode() -> None:
    r = decode(Invocation, RECORD)
    assert r.time == datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
    assert (r.phases.total_us, r.phases.spawn_us, r.phases.boot_us, r.memory) == (12, 3, None, None)
    assert decode(list[Invocation], [RECORD])[0] == r


def test_decode_of_pairs_and_null() -> None:
    sets = {k: None for k in ("touched", "prefetched", "zero", "missed", "wasted")}
    m = decode(PageMap, {"data": [[0, 3], [8, 1]], **sets})
    assert m.data == [(0, 3), (8, 1)] and m.touched is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": 7}, ".id is 7: want str"),
        ({"status": True}, ".status is True: want int"),
        ({"phases": {}}, "Phases.phases has no total_us"),
        ({"phases": {"total_us": "12"}}, ".phases.total_us is '12': want int"),
        ({"time": "yesterday"}, "yesterday"),
    ],
)
def test_decode_refuses(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        decode(Invocation, {**RECORD, **change})


def test_encode() -> None:
    f = Function(name="a", image="b", env={"K": "v"}, snapshot=SnapshotRule(off=True))
    assert encode(f) == {"name": "a", "image": "b", "env": {"K": "v"}, "snapshot": {"off": True}}
    assert encode({"timeout": None, "snapshot": SnapshotRule(off=True)}) == {"timeout": None, "snapshot": {"off": True}}
    assert decode(DeployLine, {"function": encode(f)}).function == f
    assert text(True) == "true" and text(7) == "7"
    assert text(datetime(2026, 1, 31, 12, tzinfo=UTC)).startswith("2026-01-3")


def test_lines_end_at_newlines_alone() -> None:
    lines = Lines()
    whole = "a\x85b\u2028c\r\nd".encode()
    got = [line for i in range(len(whole)) for line in lines.feed(whole[i : i + 1])]
    assert got == ["a\x85b\u2028c\r"] and list(lines.end()) == ["d"]


def test_events_data() -> None:
    events = EventData()
    said = [events.feed(line) for line in ("id: 1", "event: x", "data: {", "data:}", "", ": still here", "", "data: z\r", "\r")]
    assert [s for s in said if s is not None] == ["{\n}", "z"]
