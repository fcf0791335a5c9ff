# Made by generate.py from control/openapi.json: change those, not this.
"""The calls of the API, as its document has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, Literal

from .models import (
    CollectRequest,
    Collected,
    DeployLine,
    Event,
    Experiment,
    Function,
    FunctionDetail,
    FunctionPatch,
    FunctionStatus,
    Image,
    Instance,
    Invocation,
    PullRequest,
    PushedSnapshot,
    RemoteSnapshot,
    Report,
    Revision,
    RollbackRequest,
    Snapshot,
    SnapshotMemory,
    SnapshotRequest,
    StoreUsage,
    StoreVerified,
    Ticket,
    Usage,
    Version,
)
from .transport import AsyncTransport, Call, Page, Transport, part


class Operations(Transport):
    """The calls of the API, one each."""

    def get_healthz(self) -> str:
        """200 unless the daemon has to be started anew; needs no token"""
        return self._text(Call("GET", "/healthz"))

    def get_metrics(self) -> str:
        """Prometheus' text"""
        return self._text(Call("GET", "/metrics"))

    def get_readyz(self) -> str:
        """200 when it takes requests; needs no token"""
        return self._text(Call("GET", "/readyz"))

    def follow_events(self, *, function: str | None = None, kind: str | None = None, after: str | None = None, last_event_id: str | None = None) -> Iterator[Event]:
        """what happens, while it happens: server-sent events, the data of each an Event

        function: only this function's
        kind: only of these kinds
        after: those after the event with this id; a Last-Event-ID header goes before it
        """
        return self._events(Call("GET", "/v1/events", query={"function": function, "kind": kind, "after": after}, headers={"Last-Event-ID": last_event_id}), Event)

    def list_experiments(self, *, limit: int | None = None, after: str | None = None) -> Page[Experiment]:
        """directories of experiments' results, below results_dir, newest first

        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return self._page(Call("GET", "/v1/experiments", query={"limit": limit, "after": after}), Experiment)

    def get_figure(self, name: str, figure: str, *, narrow: bool | None = None) -> str:
        """a figure of a report

        narrow: drawn for a narrow page
        """
        return self._text(Call("GET", f"/v1/experiments/{part(name)}/figures/{part(figure)}", query={"narrow": narrow}))

    def get_report(self, name: str) -> Report:
        """what was made of an experiment's samples: findings, tables, which figures"""
        return self._json(Call("GET", f"/v1/experiments/{part(name)}/report"), Report)

    def list_functions(self, *, limit: int | None = None, after: str | None = None) -> Page[FunctionStatus]:
        """all functions by name, without values of their environments

        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return self._page(Call("GET", "/v1/functions", query={"limit": limit, "after": after}), FunctionStatus)

    def remove_function(self, name: str) -> None:
        """drain it, and delete it with its snapshots and logs"""
        self._nothing(Call("DELETE", f"/v1/functions/{part(name)}"))

    def get_function(self, name: str, *, env: bool | None = None) -> FunctionDetail:
        """one function with its instances, snapshots and newest invocations

        env: tell the values of its environment
        """
        return self._json(Call("GET", f"/v1/functions/{part(name)}", query={"env": env}), FunctionDetail)

    def set_function(self, name: str, body: FunctionPatch) -> Iterator[DeployLine]:
        """change what a JSON merge patch names; answers as a deploy"""
        return self._lines(Call("PATCH", f"/v1/functions/{part(name)}", body=body, media="application/merge-patch+json"), DeployLine)

    def deploy_function(self, name: str, body: Function) -> Iterator[DeployLine]:
        """deploy: events, then the function or what went wrong, a line each"""
        return self._lines(Call("PUT", f"/v1/functions/{part(name)}", body=body, media="application/json"), DeployLine)

    def get_logs(self, name: str, *, tail: int | None = None, follow: bool | None = None, since: datetime | None = None, instance: str | None = None, invocation: str | None = None) -> Iterator[str]:
        """what it wrote: time, instance, stream, invocation and text, a line each

        tail: the last so many lines (0: all)
        follow: go on as more is written
        since: not before then
        instance: of this one
        invocation: of this one, where concurrency is 1
        """
        return self._text_lines(Call("GET", f"/v1/functions/{part(name)}/logs", query={"tail": tail, "follow": follow, "since": since, "instance": instance, "invocation": invocation}))

    def list_revisions(self, name: str) -> list[Revision]:
        """what is kept of its history, newest first"""
        return self._json(Call("GET", f"/v1/functions/{part(name)}/revisions"), list[Revision])

    def rollback_function(self, name: str, body: RollbackRequest) -> Iterator[DeployLine]:
        """put an earlier revision into force; answers as a deploy"""
        return self._lines(Call("POST", f"/v1/functions/{part(name)}/rollback", body=body, media="application/json"), DeployLine)

    def list_images(self) -> list[Image]:
        """root disks in the store"""
        return self._json(Call("GET", "/v1/images"), list[Image])

    def prune_images(self) -> list[Image]:
        """remove, and answer, those that nothing needs"""
        return self._json(Call("POST", "/v1/images/prune"), list[Image])

    def list_instances(self, *, function: str | None = None, limit: int | None = None, after: str | None = None) -> Page[Instance]:
        """running instances, oldest first

        function: only this function's
        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return self._page(Call("GET", "/v1/instances", query={"function": function, "limit": limit, "after": after}), Instance)

    def list_invocations(self, *, limit: int | None = None, after: str | None = None, function: str | None = None, since: datetime | None = None, until: datetime | None = None, status: str | None = None, failure: Literal["any", "client", "queue", "timeout", "function", "platform"] | None = None, start: Literal["boot", "restore", "warm"] | None = None, instance: str | None = None, slower_than: str | None = None, id: str | None = None) -> Page[Invocation]:
        """records of invocations, newest first

        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those older than the record with this id, as the Link header of the page before
            says
        function: only this function's
        since: that arrived then or later
        until: that arrived before then
        status: with this HTTP status, or of its class
        failure: whose doing it is that they failed
        start: how their instance started
        instance: that it answered
        slower_than: that took longer in all
        id: with this id
        """
        return self._page(Call("GET", "/v1/invocations", query={"limit": limit, "after": after, "function": function, "since": since, "until": until, "status": status, "failure": failure, "start": start, "instance": instance, "slower_than": slower_than, "id": id}), Invocation)

    def get_invocation(self, id: str) -> Invocation:
        """one record"""
        return self._json(Call("GET", f"/v1/invocations/{part(id)}"), Invocation)

    def get_document(self) -> dict[str, Any]:
        """this document"""
        return self._json(Call("GET", "/v1/openapi.json"), dict[str, Any])

    def create_session(self) -> Ticket:
        """a ticket with which one browser is let in to the page, once"""
        return self._json(Call("POST", "/v1/sessions"), Ticket)

    def list_snapshots(self, *, function: str | None = None, limit: int | None = None, after: str | None = None) -> Page[Snapshot]:
        """published snapshots, newest first

        function: only this function's
        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return self._page(Call("GET", "/v1/snapshots", query={"function": function, "limit": limit, "after": after}), Snapshot)

    def create_snapshot(self, body: SnapshotRequest) -> Snapshot:
        """boot an instance and snapshot it"""
        return self._json(Call("POST", "/v1/snapshots", body=body, media="application/json"), Snapshot)

    def remove_snapshot(self, id: str) -> None:
        """delete it; instances that run from it go on"""
        self._nothing(Call("DELETE", f"/v1/snapshots/{part(id)}"))

    def get_snapshot(self, id: str) -> dict[str, Any]:
        """its manifest, as the store has it"""
        return self._json(Call("GET", f"/v1/snapshots/{part(id)}"), dict[str, Any])

    def get_snapshot_memory(self, id: str, *, pages: bool | None = None) -> SnapshotMemory:
        """what is known of how guests use its memory

        pages: with a map of the pages
        """
        return self._json(Call("GET", f"/v1/snapshots/{part(id)}/memory", query={"pages": pages}), SnapshotMemory)

    def push_snapshot(self, id: str) -> PushedSnapshot:
        """store it, with its root disk, in the object store"""
        return self._json(Call("POST", f"/v1/snapshots/{part(id)}/push"), PushedSnapshot)

    def verify_snapshot(self, id: str) -> None:
        """read all of it and compare digests"""
        self._nothing(Call("POST", f"/v1/snapshots/{part(id)}/verify"))

    def collect_store(self, body: CollectRequest) -> Collected:
        """delete from the object store what no snapshot needs"""
        return self._json(Call("POST", "/v1/store/gc", body=body, media="application/json"), Collected)

    def pull_snapshot(self, body: PullRequest) -> Snapshot:
        """bring one here from the object store"""
        return self._json(Call("POST", "/v1/store/pull", body=body, media="application/json"), Snapshot)

    def list_remote_snapshots(self, *, function: str | None = None) -> list[RemoteSnapshot]:
        """those in the object store, newest first, and whether a start here could use them

        function: only this function's
        """
        return self._json(Call("GET", "/v1/store/snapshots", query={"function": function}), list[RemoteSnapshot])

    def remove_remote_snapshot(self, function: str, id: str) -> None:
        """take it out of the object store"""
        self._nothing(Call("DELETE", f"/v1/store/snapshots/{part(function)}/{part(id)}"))

    def get_store_usage(self, *, function: str | None = None) -> StoreUsage:
        """what the snapshots in the object store take

        function: only this function's
        """
        return self._json(Call("GET", "/v1/store/usage", query={"function": function}), StoreUsage)

    def verify_store(self, *, function: str | None = None, quick: bool | None = None) -> StoreVerified:
        """read the snapshots in the object store, and compare digests

        function: only this function's
        quick: read no content
        """
        return self._json(Call("POST", "/v1/store/verify", query={"function": function, "quick": quick}), StoreVerified)

    def get_usage(self) -> Usage:
        """memory of the host and of each instance, and who waits"""
        return self._json(Call("GET", "/v1/usage"), Usage)

    def get_version(self) -> Version:
        """what the daemon is"""
        return self._json(Call("GET", "/v1/version"), Version)


class AsyncOperations(AsyncTransport):
    """The calls of the API, one each, to be awaited."""

    async def get_healthz(self) -> str:
        """200 unless the daemon has to be started anew; needs no token"""
        return await self._text(Call("GET", "/healthz"))

    async def get_metrics(self) -> str:
        """Prometheus' text"""
        return await self._text(Call("GET", "/metrics"))

    async def get_readyz(self) -> str:
        """200 when it takes requests; needs no token"""
        return await self._text(Call("GET", "/readyz"))

    def follow_events(self, *, function: str | None = None, kind: str | None = None, after: str | None = None, last_event_id: str | None = None) -> AsyncIterator[Event]:
        """what happens, while it happens: server-sent events, the data of each an Event

        function: only this function's
        kind: only of these kinds
        after: those after the event with this id; a Last-Event-ID header goes before it
        """
        return self._events(Call("GET", "/v1/events", query={"function": function, "kind": kind, "after": after}, headers={"Last-Event-ID": last_event_id}), Event)

    async def list_experiments(self, *, limit: int | None = None, after: str | None = None) -> Page[Experiment]:
        """directories of experiments' results, below results_dir, newest first

        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return await self._page(Call("GET", "/v1/experiments", query={"limit": limit, "after": after}), Experiment)

    async def get_figure(self, name: str, figure: str, *, narrow: bool | None = None) -> str:
        """a figure of a report

        narrow: drawn for a narrow page
        """
        return await self._text(Call("GET", f"/v1/experiments/{part(name)}/figures/{part(figure)}", query={"narrow": narrow}))

    async def get_report(self, name: str) -> Report:
        """what was made of an experiment's samples: findings, tables, which figures"""
        return await self._json(Call("GET", f"/v1/experiments/{part(name)}/report"), Report)

    async def list_functions(self, *, limit: int | None = None, after: str | None = None) -> Page[FunctionStatus]:
        """all functions by name, without values of their environments

        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return await self._page(Call("GET", "/v1/functions", query={"limit": limit, "after": after}), FunctionStatus)

    async def remove_function(self, name: str) -> None:
        """drain it, and delete it with its snapshots and logs"""
        await self._nothing(Call("DELETE", f"/v1/functions/{part(name)}"))

    async def get_function(self, name: str, *, env: bool | None = None) -> FunctionDetail:
        """one function with its instances, snapshots and newest invocations

        env: tell the values of its environment
        """
        return await self._json(Call("GET", f"/v1/functions/{part(name)}", query={"env": env}), FunctionDetail)

    def set_function(self, name: str, body: FunctionPatch) -> AsyncIterator[DeployLine]:
        """change what a JSON merge patch names; answers as a deploy"""
        return self._lines(Call("PATCH", f"/v1/functions/{part(name)}", body=body, media="application/merge-patch+json"), DeployLine)

    def deploy_function(self, name: str, body: Function) -> AsyncIterator[DeployLine]:
        """deploy: events, then the function or what went wrong, a line each"""
        return self._lines(Call("PUT", f"/v1/functions/{part(name)}", body=body, media="application/json"), DeployLine)

    def get_logs(self, name: str, *, tail: int | None = None, follow: bool | None = None, since: datetime | None = None, instance: str | None = None, invocation: str | None = None) -> AsyncIterator[str]:
        """what it wrote: time, instance, stream, invocation and text, a line each

        tail: the last so many lines (0: all)
        follow: go on as more is written
        since: not before then
        instance: of this one
        invocation: of this one, where concurrency is 1
        """
        return self._text_lines(Call("GET", f"/v1/functions/{part(name)}/logs", query={"tail": tail, "follow": follow, "since": since, "instance": instance, "invocation": invocation}))

    async def list_revisions(self, name: str) -> list[Revision]:
        """what is kept of its history, newest first"""
        return await self._json(Call("GET", f"/v1/functions/{part(name)}/revisions"), list[Revision])

    def rollback_function(self, name: str, body: RollbackRequest) -> AsyncIterator[DeployLine]:
        """put an earlier revision into force; answers as a deploy"""
        return self._lines(Call("POST", f"/v1/functions/{part(name)}/rollback", body=body, media="application/json"), DeployLine)

    async def list_images(self) -> list[Image]:
        """root disks in the store"""
        return await self._json(Call("GET", "/v1/images"), list[Image])

    async def prune_images(self) -> list[Image]:
        """remove, and answer, those that nothing needs"""
        return await self._json(Call("POST", "/v1/images/prune"), list[Image])

    async def list_instances(self, *, function: str | None = None, limit: int | None = None, after: str | None = None) -> Page[Instance]:
        """running instances, oldest first

        function: only this function's
        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return await self._page(Call("GET", "/v1/instances", query={"function": function, "limit": limit, "after": after}), Instance)

    async def list_invocations(self, *, limit: int | None = None, after: str | None = None, function: str | None = None, since: datetime | None = None, until: datetime | None = None, status: str | None = None, failure: Literal["any", "client", "queue", "timeout", "function", "platform"] | None = None, start: Literal["boot", "restore", "warm"] | None = None, instance: str | None = None, slower_than: str | None = None, id: str | None = None) -> Page[Invocation]:
        """records of invocations, newest first

        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those older than the record with this id, as the Link header of the page before
            says
        function: only this function's
        since: that arrived then or later
        until: that arrived before then
        status: with this HTTP status, or of its class
        failure: whose doing it is that they failed
        start: how their instance started
        instance: that it answered
        slower_than: that took longer in all
        id: with this id
        """
        return await self._page(Call("GET", "/v1/invocations", query={"limit": limit, "after": after, "function": function, "since": since, "until": until, "status": status, "failure": failure, "start": start, "instance": instance, "slower_than": slower_than, "id": id}), Invocation)

    async def get_invocation(self, id: str) -> Invocation:
        """one record"""
        return await self._json(Call("GET", f"/v1/invocations/{part(id)}"), Invocation)

    async def get_document(self) -> dict[str, Any]:
        """this document"""
        return await self._json(Call("GET", "/v1/openapi.json"), dict[str, Any])

    async def create_session(self) -> Ticket:
        """a ticket with which one browser is let in to the page, once"""
        return await self._json(Call("POST", "/v1/sessions"), Ticket)

    async def list_snapshots(self, *, function: str | None = None, limit: int | None = None, after: str | None = None) -> Page[Snapshot]:
        """published snapshots, newest first

        function: only this function's
        limit: at most so many; the answer's Link header, of relation next, leads to those after
            them (0: all, of invocations 100)
        after: those after the page that ended there, as its Link header says
        """
        return await self._page(Call("GET", "/v1/snapshots", query={"function": function, "limit": limit, "after": after}), Snapshot)

    async def create_snapshot(self, body: SnapshotRequest) -> Snapshot:
        """boot an instance and snapshot it"""
        return await self._json(Call("POST", "/v1/snapshots", body=body, media="application/json"), Snapshot)

    async def remove_snapshot(self, id: str) -> None:
        """delete it; instances that run from it go on"""
        await self._nothing(Call("DELETE", f"/v1/snapshots/{part(id)}"))

    async def get_snapshot(self, id: str) -> dict[str, Any]:
        """its manifest, as the store has it"""
        return await self._json(Call("GET", f"/v1/snapshots/{part(id)}"), dict[str, Any])

    async def get_snapshot_memory(self, id: str, *, pages: bool | None = None) -> SnapshotMemory:
        """what is known of how guests use its memory

        pages: with a map of the pages
        """
        return await self._json(Call("GET", f"/v1/snapshots/{part(id)}/memory", query={"pages": pages}), SnapshotMemory)

    async def push_snapshot(self, id: str) -> PushedSnapshot:
        """store it, with its root disk, in the object store"""
        return await self._json(Call("POST", f"/v1/snapshots/{part(id)}/push"), PushedSnapshot)

    async def verify_snapshot(self, id: str) -> None:
        """read all of it and compare digests"""
        await self._nothing(Call("POST", f"/v1/snapshots/{part(id)}/verify"))

    async def collect_store(self, body: CollectRequest) -> Collected:
        """delete from the object store what no snapshot needs"""
        return await self._json(Call("POST", "/v1/store/gc", body=body, media="application/json"), Collected)

    async def pull_snapshot(self, body: PullRequest) -> Snapshot:
        """bring one here from the object store"""
        return await self._json(Call("POST", "/v1/store/pull", body=body, media="application/json"), Snapshot)

    async def list_remote_snapshots(self, *, function: str | None = None) -> list[RemoteSnapshot]:
        """those in the object store, newest first, and whether a start here could use them

        function: only this function's
        """
        return await self._json(Call("GET", "/v1/store/snapshots", query={"function": function}), list[RemoteSnapshot])

    async def remove_remote_snapshot(self, function: str, id: str) -> None:
        """take it out of the object store"""
        await self._nothing(Call("DELETE", f"/v1/store/snapshots/{part(function)}/{part(id)}"))

    async def get_store_usage(self, *, function: str | None = None) -> StoreUsage:
        """what the snapshots in the object store take

        function: only this function's
        """
        return await self._json(Call("GET", "/v1/store/usage", query={"function": function}), StoreUsage)

    async def verify_store(self, *, function: str | None = None, quick: bool | None = None) -> StoreVerified:
        """read the snapshots in the object store, and compare digests

        function: only this function's
        quick: read no content
        """
        return await self._json(Call("POST", "/v1/store/verify", query={"function": function, "quick": quick}), StoreVerified)

    async def get_usage(self) -> Usage:
        """memory of the host and of each instance, and who waits"""
        return await self._json(Call("GET", "/v1/usage"), Usage)

    async def get_version(self) -> Version:
        """what the daemon is"""
        return await self._json(Call("GET", "/v1/version"), Version)
