"""What the clients send, and what they make of answers, good and bad."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Asked, Handler, Reply

import skep
from skep.models import DeployEvent, SnapshotRule
from skep.wire import decode

Connect = Callable[[Handler], skep.Client]

RECORD = {"id": "r1", "function": "hello", "time": "2026-01-31T12:00:00Z", "phases": {"total_us": 12}, "bytes_in": 0, "bytes_out": 0, "status": 200}
EVENT = {"id": "1", "time": "2026-01-31T12:00:00Z", "kind": "resync"}


def problem(status: int, **fields: object) -> Reply:
    return Reply(json.dumps({"title": "T", "status": status, **fields}).encode(), status, "application/problem+json")


def test_problem(client_of: Connect) -> None:
    client = client_of(lambda _: problem(404, detail="no such function", hint="deploy it"))
    with pytest.raises(skep.NotFound) as e:
        client.get_function("a/b")
    assert (e.value.status, e.value.detail, e.value.hint, e.value.title) == (404, "no such function", "deploy it", "T")
    assert str(e.value) == "no such function (deploy it)"


@pytest.mark.parametrize("body", [b"<html>", b'{"detail": 7}', b"[]", b"", b"{"])
def test_problem_of_another_shape(client_of: Connect, body: bytes) -> None:
    for media in ("application/problem+json", "text/html"):
        client = client_of(lambda _, media=media: Reply(body, 502, media))  # type: ignore[misc]
        with pytest.raises(skep.Problem) as e:
            client.get_version()
        assert e.value.status == 502 and "502" in str(e.value)


@pytest.mark.parametrize("body", [b"{}", b"{", b"[]", b'{"version": 1, "go": "x"}'])
def test_answers_that_are_none(client_of: Connect, body: bytes) -> None:
    with pytest.raises(skep.BrokenAnswer):
        client_of(lambda _: Reply(body)).get_version()


def test_answer_breaks_off(client_of: Connect) -> None:
    with pytest.raises(skep.BrokenAnswer):
        client_of(lambda _: Reply(b'{"version": "a", "go"', promised=9)).get_version()
    event = b"data: " + json.dumps(EVENT).encode() + b"\n\n"
    got = []
    with pytest.raises(skep.BrokenAnswer):
        for e in client_of(lambda _: Reply(event, media="text/event-stream", promised=9)).events():
            got.append(e.kind)
    assert got == ["resync"]


def test_unreachable(tmp_path: Path) -> None:
    with skep.Client(socket=tmp_path / "none.sock") as client, pytest.raises(skep.Unreachable, match=r"none\.sock"):
        client.get_version()


def test_deploy(client_of: Connect, tmp_path: Path) -> None:
    asked: list[Asked] = []
    lines: list[object] = [{"event": {"stage": "pulling", "done": 1}}, {"function": {"name": "a", "image": "i", "memory_mib": 128}}]

    def handler(a: Asked) -> Reply:
        asked.append(a)
        return Reply("".join(json.dumps(line) + "\n" for line in lines).encode(), media="application/x-ndjson")

    client = client_of(handler)
    (tmp_path / "skep-image.json").write_text("{}")
    told: list[DeployEvent] = []
    f = client.deploy("a", tmp_path, progress=told.append, memory_mib=128, env={"K": "v"}, snapshot=SnapshotRule(off=True))
    assert (f.memory_mib, [e.stage for e in told]) == (128, ["pulling"])
    want = {"name": "a", "image": f"dir:{tmp_path}", "memory_mib": 128, "env": {"K": "v"}, "snapshot": {"off": True}}
    assert (asked[0].method, asked[0].path, json.loads(asked[0].body)) == ("PUT", "/v1/functions/a", want)
    client.set("a", {"timeout": None, "max_instances": 2})
    assert asked[1].headers["content-type"] == "application/merge-patch+json"
    assert json.loads(asked[1].body) == {"timeout": None, "max_instances": 2}
    lines[1] = {"failure": {"title": "T", "status": 422, "detail": "never ready", "hint": "see its log"}}
    with pytest.raises(skep.Problem, match=r"never ready \(see its log\)") as e:
        client.rollback("a")
    assert e.value.status == 422
    del lines[1]
    with pytest.raises(skep.BrokenAnswer, match="broke off"):
        client.deploy("a", "localhost:5000/i")


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from skep.answers import image_of

    monkeypatch.chdir(tmp_path)
    assert image_of("dir:x") == f"dir:{tmp_path}/x"
    assert image_of("oci:x:v1") == f"oci:{tmp_path}/x:v1"
    assert image_of("localhost:5000/a:v1") == "localhost:5000/a:v1"
    (tmp_path / "oci-layout").write_text("{}")
    assert image_of(Path()) == f"oci:{tmp_path}"
    with pytest.raises(skep.ConfigError, match="oci-archive:"):
        image_of(tmp_path / "a.tar")


def test_invoke(client_of: Connect) -> None:
    asked: list[Asked] = []
    reply = Reply(b'{"a": 1}', 418, headers=(("Skep-Invocation", "r1"), ("Skep-Start", "restore")))

    def handler(a: Asked) -> Reply:
        asked.append(a)
        return Reply(json.dumps(RECORD).encode()) if a.path.startswith("/v1/invocations") else reply

    client = client_of(handler)
    answer = client.invoke("hello", "/x%2Fy?q=a+b", json={"n": 3}, headers={"X-A": "b"}, start="restore", policy="reap")
    assert (answer.status, answer.ok, answer.json(), answer.start, answer.invocation) == (418, False, {"a": 1}, "restore", "r1")
    a = asked[0]
    assert (a.method, a.path, a.body) == ("POST", "/v1/functions/hello/invoke/x%2Fy?q=a+b", b'{"n": 3}')
    assert [a.headers[h] for h in ("x-a", "skep-start", "skep-policy", "content-type")] == ["b", "restore", "reap", "application/json"]
    assert client.record(answer).phases.total_us == 12
    client.invoke("hello")
    assert (asked[-1].method, asked[-1].path, asked[-1].body) == ("GET", "/v1/functions/hello/invoke/", b"")
    reply = problem(503, detail="the queue is full", function="hello", invocation="r2", instance="i")
    reply.headers = (("Skep-Error", "true"), ("Skep-Invocation", "r2"))
    with pytest.raises(skep.Problem, match="queue is full") as e:
        client.invoke("hello")
    assert (e.value.function, e.value.invocation, e.value.instance) == ("hello", "r2", "i")
    with pytest.raises(skep.ConfigError, match="one body"):
        client.invoke("hello", data="x", json=1)


def test_record_is_waited_for(client_of: Connect) -> None:
    left = [problem(404, detail="no record"), problem(404, detail="no record"), Reply(json.dumps(RECORD).encode())]
    assert client_of(lambda _: left.pop(0)).record("r1").id == "r1"


def test_records_follow_pages(client_of: Connect) -> None:
    asked: list[str] = []

    def handler(a: Asked) -> Reply:
        asked.append(a.path)
        link = (("Link", '</v1/invocations?after=r%201&limit=1>; rel="next"'),) if "after" not in a.path else ()
        return Reply(json.dumps([RECORD]).encode(), headers=link)

    client = client_of(handler)
    assert len(client.records(function="hello")) == 2
    assert asked == ["/v1/invocations?limit=1000&function=hello", "/v1/invocations?limit=1000&after=r+1&function=hello"]
    assert len(client.records(most=1)) == 1
    assert asked[-1] == "/v1/invocations?limit=1"


def test_events(client_of: Connect) -> None:
    asked: list[str] = []
    ev = {**EVENT, "kind": "phase", "phase": {"instance": "i", "name": "spawn", "took_ns": 5}}

    def handler(a: Asked) -> Reply:
        asked.append(a.path)
        return Reply(f"id: 1\nevent: phase\ndata: {json.dumps(ev)}\n\n: still here\n\n".encode(), media="text/event-stream")

    (got,) = client_of(handler).events(kinds=["phase", "instance"], function="hello")
    assert got.phase is not None and got.phase.took_ns == 5
    assert asked == ["/v1/events?function=hello&kind=phase%2Cinstance"]


def test_async(serve: Callable[[Handler], Path]) -> None:
    def handler(a: Asked) -> Reply:
        if a.path.startswith("/v1/invocations"):
            return Reply(json.dumps([RECORD] if "?" in a.path else RECORD).encode())
        if a.path == "/v1/events":
            return Reply(f"data: {json.dumps(EVENT)}\n\n".encode(), media="text/event-stream")
        if a.method == "PUT":
            return Reply(json.dumps({"function": {"name": "a", "image": "i"}}).encode(), media="application/x-ndjson")
        if "/invoke/" in a.path:
            return Reply(b"hi", headers=(("Skep-Invocation", "r1"),))
        return problem(409, detail="busy")

    async def main() -> None:
        async with skep.AsyncClient(socket=serve(handler)) as client:
            assert (await client.deploy("a", "i")).name == "a"
            answers = await asyncio.gather(*(client.invoke("a") for _ in range(20)))
            assert {a.text for a in answers} == {"hi"}
            assert (await client.record(answers[0])).id == "r1"
            assert len(await client.records()) == 1
            assert [e.kind async for e in client.events()] == ["resync"]
            with pytest.raises(skep.Problem, match="busy"):
                await client.get_version()

    asyncio.run(main())


def test_program(client_of: Connect, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = tmp_path / "skep"
    script.write_text(
        f"""#!/bin/sh
echo "$@" > {said}
for a; do [ "$last" = --out ] && out=$a; last=$a; done
mkdir -p $out
echo '{{"plan": {{"functions": ["hello"], "url": "u"}}}}' > $out/calls.jsonl
echo '{{"n": 1, "function": 0, "at_ns": 1000000, "late_ns": 0, "latency_ns": 3000000, "took_ns": 0, "status": 200, "start": "warm"}}' >> $out/calls.jsonl
printf '{{"n": 0, "func' >> $out/calls.jsonl
echo '{{"done": 1, "lost": 1}}'
exit 1
"""
    )
    script.chmod(0o755)
    client = client_of(lambda _: Reply(b'{"version": "v", "go": "g", "gateway": "127.0.0.1:7080"}'))
    client.program = str(script)
    load = client.load("hello", "poisson:rate=5", args=["--seed", "3"])
    assert (load.report["lost"], len(load.calls), load.plan["url"]) == (1, 1, "u")
    words = said.read_text().split()
    assert words[:4] == ["--address", "--socket", client.settings.socket, "load"]
    assert "http://127.0.0.1:7080/function/{function}/work?ms={ms}&mib={mib}" in words and words[words.index("--seed") + 1] == "3"
    frame = skep.frames.load(load)
    assert frame.latency_ms.tolist() == [3.0] and frame.attrs["lost"] == 1
    with pytest.raises(skep.ConfigError, match="either source"):
        client.load("hello")
    with pytest.raises(skep.ProgramError, match="exit code 1"):
        client.deploy_builtin("hello")
    client.program = str(tmp_path / "none")
    with pytest.raises(skep.ProgramError, match="there is no program"):
        client.deploy_builtin("hello")


def test_bench(client_of: Connect) -> None:
    asked = []

    def handler(a: Asked) -> Reply:
        if "/invoke/" in a.path:
            asked.append((a.headers.get("skep-start"), a.headers.get("skep-policy")))
            return Reply(b"ok", headers=(("Skep-Invocation", "r1"),))
        if a.path == "/v1/version":
            return Reply(b'{"version": "v", "go": "g", "policies": ["mmap", "reap"]}')
        return Reply(json.dumps(RECORD).encode())

    samples = client_of(handler).bench("hello", runs=2, starts=["warm", "restore"])
    assert [s.variant for s in samples] == ["restore mmap", "restore reap", "warm"] * 2
    assert asked == [("restore", "mmap"), ("restore", "reap"), (None, None), ("warm", None)] * 2
    frame = skep.frames.samples(samples)
    assert frame.groupby("variant").size().to_dict() == {"restore mmap": 2, "restore reap": 2, "warm": 2}
    assert frame.total_ms.tolist() == [0.012] * 6


def test_frames_tell_phases_from_memory() -> None:
    memory = {"policy": "reap", "install_ns": 7_000_000, **dict.fromkeys(("prefetched_pages", "faults", "zero_pages", "zeroed_ahead_pages"), 1)}
    memory |= {"missed_pages": -1} | dict.fromkeys(("wasted_pages", "bytes_read", "fetch_ns", "handler_ns"), 2)
    record = decode(skep.models.Invocation, {**RECORD, "phases": {"total_us": 9000, "install_us": 3000}, "memory": memory})
    frame = skep.frames.records([record])
    assert frame.columns.is_unique
    row = frame.iloc[0]
    assert frame.missed_pages.isna().all() and row.wasted_pages == 2
    assert (row.install_ms, row.memory_install_ms, row.total_ms, row.prefetched_pages) == (3.0, 7.0, 9.0, 1)


def test_frames_of_nothing() -> None:
    assert skep.frames.records([]).empty and "spawn_ms" in skep.frames.samples([]).columns
