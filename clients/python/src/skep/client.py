"""The clients: the calls of the API by their names, and what is done with several of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Unpack

from . import program as programs
from .answers import (
    RECORD_TRIES,
    Answer,
    Bench,
    Load,
    Sample,
    Start,
    answer_of,
    body_of,
    broke_off,
    function_of,
    invocation_call,
    must_be_good,
    outcome,
    record_pause,
    turns,
    variants,
)
from .errors import NotFound, SkepError
from .models import DeployEvent, DeployLine, Event, Function, FunctionDetail, FunctionPatch, FunctionSettings, Invocation, RollbackRequest
from .operations import AsyncOperations, Operations
from .settings import find
from .transport import _errors

Progress = Callable[[DeployEvent], object]
Path = str | os.PathLike[str]
Failure = Literal["any", "client", "queue", "timeout", "function", "platform"]

MOST_IN_PAGE = 1000


def _gateway(gateway: str | None, path: str) -> str:
    """The URL that a load calls, in which the program sets the function."""
    if not gateway:
        raise SkepError("the daemon does not say where its gateway is")
    return f"http://{gateway}/function/{{function}}/{path.removeprefix('/')}"


class Client(Operations):
    """A daemon's control API. Without arguments the daemon is found as the program `skep` finds it:
    by SKEP_SOCKET, SKEP_ADDRESS and SKEP_CONTROL_TOKEN_FILE, or the configuration file.

    timeout, in seconds, bounds each wait for bytes of an answer; None, the default, does not.
    program is the program `skep`, which load and bench_cold run.
    """

    def __init__(
        self,
        *,
        socket: Path | None = None,
        address: str | None = None,
        token: str | None = None,
        token_file: Path | None = None,
        config: Path | None = None,
        timeout: float | None = None,
        program: Path = "skep",
    ):
        super().__init__(find(socket=socket, address=address, token=token, token_file=token_file, config=config), timeout)
        self.program = os.fspath(program)

    def deploy(self, name: str, image: Path, *, progress: Progress | None = None, **settings: Unpack[FunctionSettings]) -> Function:
        """Makes a function of an image, or replaces the one of that name and all its settings, and
        returns it as the daemon has it. image is as `skep deploy` takes it, but for functions/…
        (see deploy_builtin); a path is a directory: an OCI layout, or a root directory with
        skep-image.json. progress is told how far it is. Raises Problem, and then nothing changed.
        """
        return self._change(self.deploy_function(name, function_of(name, image, settings)), progress)

    def deploy_builtin(self, function: str, *args: str, name: str | None = None) -> FunctionDetail:
        """Deploys a function that comes with skep, as hello-python, by the program, which makes its
        image on this machine. args are flags of `skep deploy`.
        """
        name = name or function
        programs.run(self.program, self.settings, "deploy", f"functions/{function}", "--name", name, *args)
        return self.get_function(name)

    def set(self, name: str, patch: FunctionPatch, *, progress: Progress | None = None) -> Function:
        """Changes the settings that patch names; None is the default."""
        return self._change(self.set_function(name, patch), progress)

    def rollback(self, name: str, revision: int = 0, *, progress: Progress | None = None) -> Function:
        """Puts an earlier revision into force, 0 the one before."""
        return self._change(self.rollback_function(name, RollbackRequest(revision=revision)), progress)

    def _change(self, lines: Iterator[DeployLine], progress: Progress | None) -> Function:
        for line in lines:
            if (function := outcome(line)) is not None:
                return function
            if line.event is not None and progress is not None:
                progress(line.event)
        raise broke_off()

    def invoke(
        self,
        function: str,
        path: str = "/",
        *,
        method: str | None = None,
        data: bytes | str | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        start: Start | None = None,
        policy: str | None = None,
    ) -> Answer:
        """Calls a function, and returns its answer, whatever its status; what goes wrong on skep's
        side raises Problem. start asks for a kind of start, policy for a policy of the guest's memory.
        """
        body, headers = body_of(data, json, headers)
        with _errors(self.settings):
            return answer_of(self._http.request(**invocation_call(function, path, method, body, headers, start, policy)))

    def record(self, of: Answer | str) -> Invocation:
        """The record of an answer, or of an invocation's id. It is waited for, for some seconds."""
        name = of.invocation if isinstance(of, Answer) else of
        for n in range(RECORD_TRIES):
            try:
                return self.get_invocation(name)
            except NotFound as e:
                time.sleep(record_pause(n, e))
        raise AssertionError("record_pause raises at last")

    def records(
        self,
        *,
        function: str | None = None,
        most: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        status: str | None = None,
        failure: Failure | None = None,
        start: Start | None = None,
    ) -> list[Invocation]:
        """Records of invocations, newest first: all that are kept, or so many at most."""
        out: list[Invocation] = []
        after = None
        while True:
            limit = MOST_IN_PAGE if most is None else min(MOST_IN_PAGE, most - len(out))
            if limit <= 0:
                return out
            page = self.list_invocations(
                limit=limit, after=after, function=function, since=since, until=until, status=status, failure=failure, start=start
            )
            out += page
            after = page.after
            if after is None:
                return out

    def events(self, *, function: str | None = None, kinds: Sequence[str] = (), after: str | None = None) -> Iterator[Event]:
        """What happens, while it happens. The first is of kind resync, unless it goes on after the
        event with the id after without a gap: who keeps a state reads it anew then. It ends when the
        daemon does; asked again with the last id it goes on.
        """
        return self.follow_events(function=function, kind=",".join(kinds) or None, after=after)

    def bench(
        self,
        function: str,
        *,
        runs: int = 5,
        starts: Sequence[Start] = ("restore", "warm"),
        policies: Sequence[str] | None = None,
        path: str = "/",
    ) -> list[Sample]:
        """Invokes a deployed function in several ways in turns, and returns their records, in which
        the daemon has measured. policies are of restores; None is all there are. Files are in the
        page cache as they are: bench_cold measures from a cold one.
        """
        offered = self.get_version().policies or []
        out = []
        for run, variant, start, policy in turns(runs, variants(starts, policies, offered)):
            if start == "warm":
                must_be_good(self.invoke(function, path), function)
            answer = self.invoke(function, path, start=start, policy=policy)
            must_be_good(answer, function)
            out.append(Sample(run, variant, self.record(answer)))
        return out

    def bench_cold(
        self,
        function: str = "hello-python",
        *,
        runs: int = 5,
        starts: Sequence[Start] = ("restore", "warm"),
        policies: Sequence[str] | None = None,
        path: str = "/",
        cold: Literal["none", "files", "all"] = "files",
        args: Sequence[str] = (),
    ) -> Bench:
        """Measures starts of a function that comes with skep on a private daemon, whose files leave
        the page cache before each: `skep bench start`, of which args are flags. Wants root.
        """
        with programs.Outputs(None) as out:
            file = out / "samples.jsonl"
            programs.run(self.program, None, *programs.bench_args(function, path, runs, starts, policies, cold, file, args))
            return programs.read_bench(file)

    def load(
        self,
        function: str = "hello",
        source: str | None = None,
        *,
        trace: Path | None = None,
        duration: str = "10s",
        took: str = "20ms",
        path: str = "/work?ms={ms}&mib={mib}",
        out: Path | None = None,
        args: Sequence[str] = (),
    ) -> Load:
        """Calls functions by a rate (source, as poisson:rate=10) or a trace, in an open loop, through
        the gateway: `skep load`, of which args are flags. out is a directory that keeps the results.
        """
        with programs.Outputs(out) as where:
            url = _gateway(self.get_version().gateway, path)
            asked = programs.load_args(source, trace, function, duration, took, url, where, args)
            return programs.read_load(where, programs.run(self.program, self.settings, *asked, fine=programs.LOAD_FINE))


class AsyncClient(AsyncOperations):
    """Client, whose methods are to be awaited; see there."""

    def __init__(
        self,
        *,
        socket: Path | None = None,
        address: str | None = None,
        token: str | None = None,
        token_file: Path | None = None,
        config: Path | None = None,
        timeout: float | None = None,
        program: Path = "skep",
    ):
        super().__init__(find(socket=socket, address=address, token=token, token_file=token_file, config=config), timeout)
        self.program = os.fspath(program)

    async def deploy(self, name: str, image: Path, *, progress: Progress | None = None, **settings: Unpack[FunctionSettings]) -> Function:
        """See Client.deploy."""
        return await self._change(self.deploy_function(name, function_of(name, image, settings)), progress)

    async def deploy_builtin(self, function: str, *args: str, name: str | None = None) -> FunctionDetail:
        """See Client.deploy_builtin."""
        name = name or function
        await programs.run_async(self.program, self.settings, "deploy", f"functions/{function}", "--name", name, *args)
        return await self.get_function(name)

    async def set(self, name: str, patch: FunctionPatch, *, progress: Progress | None = None) -> Function:
        """See Client.set."""
        return await self._change(self.set_function(name, patch), progress)

    async def rollback(self, name: str, revision: int = 0, *, progress: Progress | None = None) -> Function:
        """See Client.rollback."""
        return await self._change(self.rollback_function(name, RollbackRequest(revision=revision)), progress)

    async def _change(self, lines: AsyncIterator[DeployLine], progress: Progress | None) -> Function:
        async for line in lines:
            if (function := outcome(line)) is not None:
                return function
            if line.event is not None and progress is not None:
                progress(line.event)
        raise broke_off()

    async def invoke(
        self,
        function: str,
        path: str = "/",
        *,
        method: str | None = None,
        data: bytes | str | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        start: Start | None = None,
        policy: str | None = None,
    ) -> Answer:
        """See Client.invoke."""
        body, headers = body_of(data, json, headers)
        with _errors(self.settings):
            return answer_of(await self._http.request(**invocation_call(function, path, method, body, headers, start, policy)))

    async def record(self, of: Answer | str) -> Invocation:
        """See Client.record."""
        name = of.invocation if isinstance(of, Answer) else of
        for n in range(RECORD_TRIES):
            try:
                return await self.get_invocation(name)
            except NotFound as e:
                await asyncio.sleep(record_pause(n, e))
        raise AssertionError("record_pause raises at last")

    async def records(
        self,
        *,
        function: str | None = None,
        most: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        status: str | None = None,
        failure: Failure | None = None,
        start: Start | None = None,
    ) -> list[Invocation]:
        """See Client.records."""
        out: list[Invocation] = []
        after = None
        while True:
            limit = MOST_IN_PAGE if most is None else min(MOST_IN_PAGE, most - len(out))
            if limit <= 0:
                return out
            page = await self.list_invocations(
                limit=limit, after=after, function=function, since=since, until=until, status=status, failure=failure, start=start
            )
            out += page
            after = page.after
            if after is None:
                return out

    def events(self, *, function: str | None = None, kinds: Sequence[str] = (), after: str | None = None) -> AsyncIterator[Event]:
        """See Client.events."""
        return self.follow_events(function=function, kind=",".join(kinds) or None, after=after)

    async def bench(
        self,
        function: str,
        *,
        runs: int = 5,
        starts: Sequence[Start] = ("restore", "warm"),
        policies: Sequence[str] | None = None,
        path: str = "/",
    ) -> list[Sample]:
        """See Client.bench."""
        offered = (await self.get_version()).policies or []
        out = []
        for run, variant, start, policy in turns(runs, variants(starts, policies, offered)):
            if start == "warm":
                must_be_good(await self.invoke(function, path), function)
            answer = await self.invoke(function, path, start=start, policy=policy)
            must_be_good(answer, function)
            out.append(Sample(run, variant, await self.record(answer)))
        return out

    async def bench_cold(
        self,
        function: str = "hello-python",
        *,
        runs: int = 5,
        starts: Sequence[Start] = ("restore", "warm"),
        policies: Sequence[str] | None = None,
        path: str = "/",
        cold: Literal["none", "files", "all"] = "files",
        args: Sequence[str] = (),
    ) -> Bench:
        """See Client.bench_cold."""
        with programs.Outputs(None) as out:
            file = out / "samples.jsonl"
            asked = programs.bench_args(function, path, runs, starts, policies, cold, file, args)
            await programs.run_async(self.program, None, *asked)
            return programs.read_bench(file)

    async def load(
        self,
        function: str = "hello",
        source: str | None = None,
        *,
        trace: Path | None = None,
        duration: str = "10s",
        took: str = "20ms",
        path: str = "/work?ms={ms}&mib={mib}",
        out: Path | None = None,
        args: Sequence[str] = (),
    ) -> Load:
        """See Client.load."""
        with programs.Outputs(out) as where:
            url = _gateway((await self.get_version()).gateway, path)
            asked = programs.load_args(source, trace, function, duration, took, url, where, args)
            said = await programs.run_async(self.program, self.settings, *asked, fine=programs.LOAD_FINE)
            return programs.read_load(where, said)
