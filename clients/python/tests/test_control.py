"""The clients over the daemon's own control API, with a node without machines:
`go test ./clients/python` serves it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

import skep
from skep.models import CollectRequest, PullRequest, SnapshotRequest

SOCKET = os.environ.get("SKEP_TEST_CONTROL", "")

pytestmark = pytest.mark.skipif(not SOCKET, reason="needs a control API: go test ./clients/python")


@pytest.fixture
def client() -> Iterator[skep.Client]:
    with skep.Client(socket=SOCKET) as c:
        yield c


def test_lists(client: skep.Client) -> None:
    assert client.get_version().policies == ["mmap", "reap"]
    assert [f.name for f in client.list_functions()] == ["hello", "other", "third"]
    names: list[str] = []
    after = None
    while True:
        page = client.list_functions(limit=1, after=after)
        names += [f.name for f in page]
        if (after := page.after) is None:
            break
    assert names == ["hello", "other", "third"]
    assert {i.state for i in client.list_instances(function="hello")} == {"idle", "busy"}
    assert [s.id for s in client.list_snapshots()] == ["s1"]
    assert client.get_function("hello").recent is not None
    assert client.get_usage().memory_bytes > 0
    assert client.list_images() is not None
    assert client.get_document()["openapi"].startswith("3.1")
    assert client.get_readyz() and client.get_healthz()


def test_records(client: skep.Client) -> None:
    (record,) = client.records(function="hello", start="restore")
    assert record.memory is not None and record.memory.faults == 3 and record.phases.spawn_us == 1000
    row = skep.frames.records([record]).iloc[0]
    assert (row.spawn_ms, row.total_ms, row.policy, row.faults) == (1.0, 2.0, "reap", 3)
    assert client.record("r1").id == "r1"


def test_problems(client: skep.Client) -> None:
    with pytest.raises(skep.NotFound, match="nosuch"):
        client.get_function("nosuch")
    with pytest.raises(skep.Problem) as e:
        client.list_invocations(status="nonsense")
    assert e.value.status == 400 and "nonsense" in e.value.detail


def test_experiments(client: skep.Client) -> None:
    (one,) = client.list_experiments()
    assert (one.name, one.reported) == ("quick", True)
    report = client.get_report(one.name)
    assert report.vmm == "qemu" and report.sections[0].name == "policies"
    section = report.sections[0]
    assert section.tables[0].rows[0][0] == "pyaes" and section.tables[0].rows[1] == []
    for narrow in (None, True):
        assert client.get_figure(one.name, section.figures[0].name, narrow=narrow).startswith("<svg")
    with pytest.raises(skep.NotFound, match="none"):
        client.get_figure(one.name, "none")


def test_store(client: skep.Client) -> None:
    assert client.pull_snapshot(PullRequest(function="hello")).id
    client.collect_store(CollectRequest(dry_run=True))
    assert client.get_store_usage().packs >= 0 and client.verify_store(quick=True).problems is not None


def test_changes(client: skep.Client) -> None:
    stages: list[str] = []
    f = client.deploy("made", "localhost:5000/made:v1", progress=lambda e: stages.append(e.stage), memory_mib=128)
    assert (f.memory_mib, f.image_digest) == (128, "sha256:1234") and "done" in stages
    assert client.set("made", {"max_instances": 3}).max_instances == 3
    assert client.rollback("made").max_instances == 8
    assert len(client.list_revisions("made")) == 3
    assert client.create_snapshot(SnapshotRequest(function="made")).id
    client.remove_function("made")
    with pytest.raises(skep.NotFound):
        client.get_function("made")


def test_invoke_and_logs(client: skep.Client) -> None:
    answer = client.invoke("hello", "/a/b?c=d", data=b"x", start="restore")
    assert answer.text == "POST a/b?c=d" and answer.start == "restore"
    assert client.record(answer).id == "r1"
    assert list(client.get_logs("hello", tail=1))


def test_events(client: skep.Client) -> None:
    got = []
    for event in client.events(after="0"):
        got.append(event)
        break
    assert got[0].kind == "phase" and got[0].phase is not None and got[0].phase.took_ns == 1_000_000


def test_token() -> None:
    address, file = os.environ["SKEP_TEST_CONTROL_ADDRESS"], os.environ["SKEP_TEST_CONTROL_TOKEN"]
    with skep.Client(address=address, token_file=file) as c:
        assert c.get_version().version == "v1"
    with skep.Client(address=address, token="wrong") as c, pytest.raises(skep.Problem) as e:
        c.get_version()
    assert e.value.status == 401


def test_async() -> None:
    async def main() -> None:
        async with skep.AsyncClient(socket=SOCKET) as c:
            versions = await asyncio.gather(*(c.get_version() for _ in range(50)))
            assert {v.version for v in versions} == {"v1"}
            assert [s.variant for s in await c.bench("hello", runs=1)] == ["restore mmap", "restore reap", "warm"]
            async for event in c.events(after="0"):
                assert event.kind == "phase"
                break
            with pytest.raises(skep.NotFound):
                await c.get_function("nosuch")

    asyncio.run(main())
