"""The clients against a real daemon, with real microVMs: `go test ./test -run Python` has one up.
SKEP_CONFIG names its configuration, so that it is found as the program skep finds it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

import skep
from skep import frames

IMAGE = os.environ.get("SKEP_TEST_IMAGE", "")
READY = os.environ.get("SKEP_TEST_READY", "60s")

pytestmark = pytest.mark.skipif(not IMAGE, reason="needs a daemon: go test ./test -run Python")


def test_a_functions_life() -> None:
    with skep.Client() as client:
        seen: list[skep.models.Event] = []
        ready = threading.Event()

        def watch() -> None:
            with skep.Client() as other:
                for event in other.events(function="hello"):
                    seen.append(event)
                    ready.set()
                    if event.kind == "function_removed":
                        return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        assert ready.wait(30) and seen[0].kind == "resync"

        stages: list[str] = []
        f = client.deploy("hello", Path(IMAGE), progress=lambda e: stages.append(e.stage), ready_timeout=READY, memory_mib=128)
        assert f.image_digest and f.memory_mib == 128 and len(set(stages)) > 3
        answer = client.invoke("hello", "/", start="restore", policy="reap")
        assert answer.ok and answer.start == "restore"
        record = client.record(answer)
        assert record.memory is not None and record.memory.policy == "reap"
        assert (record.phases.spawn_us or 0) > 0 and record.phases.total_us > 0

        samples = client.bench("hello", runs=2, policies=["mmap", "reap"])
        table = frames.samples(samples)
        assert sorted(table.variant.unique()) == ["restore mmap", "restore reap", "warm"] and len(table) == 6
        cold = table[table.start == "restore"]
        assert (abs(cold[frames.PHASE_COLUMNS].sum(axis=1) - cold.total_ms) < 0.05 * cold.total_ms).all()
        assert len(frames.records(client.records(function="hello"))) >= 7

        load = client.load("hello", "constant:rate=5", duration="2s", took="1ms")
        assert load.report["done"] == load.report["calls"] == len(frames.load(load)) >= 10

        assert client.set("hello", {"max_instances": 3}).max_instances == 3
        assert client.list_snapshots(function="hello")
        with pytest.raises(skep.NotFound):
            client.deploy("broken", "dir:/nonexistent/skep")
        client.remove_function("hello")
        watcher.join(60)
        assert not watcher.is_alive()
        kinds = {e.kind for e in seen}
        assert {"deploy", "function", "instance", "phase", "invocation", "snapshot", "function_removed"} <= kinds


def test_awaited() -> None:
    async def main() -> None:
        async with skep.AsyncClient() as client:
            detail = await client.deploy_builtin("hello", "--ready-timeout", READY, "--concurrency", "4", name="awaited")
            assert detail.name == "awaited"
            answers = await asyncio.gather(*(client.invoke("awaited") for _ in range(4)))
            assert all(a.ok for a in answers)
            await asyncio.gather(*(client.record(a) for a in answers))  # until all are there
            assert len(await client.records(function="awaited", most=4)) == 4
            await client.remove_function("awaited")

    asyncio.run(main())
