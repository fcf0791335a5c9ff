# Made by generate.py from control/openapi.json: change those, not this.
"""What the API's calls take and answer. Fields whose names end in _us and _ns are integers of that
unit; what is None was not told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict

__all__ = [
    "Arriving",
    "CollectRequest",
    "Collected",
    "Container",
    "ContainerExit",
    "DeployEvent",
    "DeployLine",
    "Error",
    "Event",
    "Experiment",
    "Function",
    "FunctionDetail",
    "FunctionPatch",
    "FunctionSettings",
    "FunctionStatus",
    "Image",
    "Instance",
    "InstanceUsage",
    "Invocation",
    "LearnedMemory",
    "MemoryStats",
    "PageFile",
    "PageMap",
    "PageSummary",
    "Phases",
    "PullRequest",
    "PushedSnapshot",
    "Rehearsal",
    "RemoteDisk",
    "RemoteMemory",
    "RemoteSnapshot",
    "Report",
    "ReportFigure",
    "ReportSection",
    "ReportTable",
    "Revision",
    "RollbackRequest",
    "Snapshot",
    "SnapshotMemory",
    "SnapshotRequest",
    "SnapshotRule",
    "SnapshotUsage",
    "StartPhase",
    "Step",
    "StoreProblem",
    "StoreUsage",
    "StoreVerified",
    "Ticket",
    "Usage",
    "Version",
]


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """Arriving says how far something is that is being fetched, in bytes of content."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class CollectRequest:
    """CollectRequest says what is to go from the object store."""

    dry_run: bool | None = None
    #: that packs stay condemned before they are deleted
    grace: str | None = None
    #: newest snapshots of each function that fit the same; 0: all
    keep: int | None = None


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Collected says what was collected, or would be."""

    #: FUNCTION/ID
    removed: list[str]
    #: under way
    pushes: int
    #: pushes written off
    dead: int
    #: before
    packs: int
    #: of them
    bytes: int
    condemned: int
    waiting: int
    deleted: int
    freed_bytes: int


@dataclass(frozen=True, kw_only=True)
class Container:
    """Container is what a record says of a container, under containerd."""

    id: str
    #: in its pod
    name: str | None = None
    pod: str | None = None
    #: the pod's; of a container without a pod containerd's
    namespace: str | None = None
    #: its digest
    image: str | None = None
    #: what it had to do with a ready snapshot
    ready: str | None = None
    #: the snapshot that it started from was made for it
    made: bool | None = None
    #: of its start
    steps: list[Step] | None = None
    exit: ContainerExit | None = None


@dataclass(frozen=True, kw_only=True)
class ContainerExit:
    """ContainerExit is a container's end."""

    code: int
    time: datetime
    out_of_memory: bool | None = None


@dataclass(frozen=True, kw_only=True)
class DeployEvent:
    """DeployEvent tells how far a deployment is. Each stage has an event when it begins (Took 0)
    and one when it is over; pulling and building have more of them between, as bytes get done.
    """

    stage: str
    detail: str | None = None
    #: bytes
    done: int | None = None
    #: bytes; 0: not known
    total: int | None = None
    took_ns: int | None = None
    function: Function | None = None
    snapshot: Snapshot | None = None
    #: with StageFailed
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeployLine:
    """DeployLine is one line of the answer to a deploy. The last line has Function or Error; the
    lines before it have Event.
    """

    event: DeployEvent | None = None
    function: Function | None = None
    failure: Error | None = None


@dataclass(frozen=True, kw_only=True)
class Error:
    """Error is the body of every answer of the control API that is not a success, and what
    Client's methods return for it: a problem of RFC 9457, whose title is the status in words,
    with a hint.
    """

    detail: str
    status: int
    title: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Event is one thing that happened in a node. No value of a function's environment is in it."""

    #: where in the stream it is, to go on after it
    id: str
    time: datetime
    kind: Literal["resync", "instance", "phase", "invocation", "deploy", "function", "function_removed", "snapshot", "snapshot_removed"]
    #: that it is about
    function: str | None = None
    reason: str | None = None
    instance: Instance | None = None
    phase: StartPhase | None = None
    invocation: Invocation | None = None
    deploy: DeployEvent | None = None
    settings: Function | None = None
    snapshot: Snapshot | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Experiment is a directory of results, as `skep experiment` makes it."""

    #: of the directory
    name: str
    #: when its report was made, or else its samples were added to
    changed: datetime
    #: of raw data
    samples_bytes: int
    #: whether it has a report; `skep experiment report` makes one
    reported: bool


@dataclass(frozen=True, kw_only=True)
class Function:
    """Function is what a user deploys: an image and how to run it. The zero value of every field
    but Name and Image means its default (see WithDefaults).
    """

    name: str
    #: as the user gave it; see package image for the forms
    image: str
    #: set by the daemon: what Image was when deployed
    image_digest: str | None = None
    #: replaces the image's Cmd (kept after its Entrypoint)
    args: list[str] | None = None
    #: added to the image's
    env: dict[str, str] | None = None
    #: default 256
    memory_mib: int | None = None
    #: default 1
    vcpus: int | None = None
    #: default 8080; the function sees it as $PORT
    port: int | None = None
    #: HTTP path that answers 2xx when ready, and as a sign of life after a request that was left
    #: or timed out; empty: the port accepts, and any answer to OPTIONS *
    ready_path: str | None = None
    #: boot until ready; default 60s
    ready_timeout: str | None = None
    #: of one invocation, queue included, unless its answer is a stream; default 60s
    timeout: str | None = None
    #: requests at once in one instance; default 1
    concurrency: int | None = None
    #: default 8
    max_instances: int | None = None
    #: that there are to be though nobody asks, as long as the node has room; default 0
    min_instances: int | None = None
    #: policy of how many there are, see package scale; empty: the daemon's default
    scaling: str | None = None
    #: requests that may wait; default 100
    queue_limit: int | None = None
    #: idle time before an instance ends; default 60s
    keep_alive: str | None = None
    snapshot: SnapshotRule | None = None
    rehearsal: Rehearsal | None = None
    #: empty: the daemon's default
    memory_policy: str | None = None
    #: "none" (default), "host" or "nat"
    egress: str | None = None
    #: limit of what it may write to its root; lives in guest memory; default half of MemoryMiB
    disk_mib: int | None = None
    #: HTTP path POSTed by the agent after each restore, before the first request
    clone_hook: str | None = None
    #: set by the daemon
    created: datetime | None = None
    #: set by the daemon: how many times it was deployed or changed
    revision: int | None = None
    #: What of an invocation may take how long, beside Timeout for all of it; see Limits. arrival
    #: until an instance is there for it; 0: as Timeout
    queue_timeout: str | None = None
    #: request sent until the response's header is there; 0: as Timeout
    response_timeout: str | None = None
    #: without a byte of either body; 0: as Timeout
    idle_timeout: str | None = None
    #: in place of Timeout for streams: WebSockets and other upgrades, server-sent events, gRPC; 0:
    #: none
    stream_timeout: str | None = None
    #: share of Concurrency beyond which other instances are started, and get the next requests;
    #: default 1
    target_utilization: float | None = None


@dataclass(frozen=True, kw_only=True)
class FunctionDetail:
    """FunctionDetail is what `skep inspect` shows of a function."""

    name: str
    #: as the user gave it; see package image for the forms
    image: str
    snapshot: SnapshotRule
    snapshots: int
    instance_list: list[Instance]
    snapshot_list: list[Snapshot]
    #: newest first
    recent: list[Invocation]
    #: set by the daemon: what Image was when deployed
    image_digest: str | None = None
    #: replaces the image's Cmd (kept after its Entrypoint)
    args: list[str] | None = None
    #: added to the image's
    env: dict[str, str] | None = None
    #: default 256
    memory_mib: int | None = None
    #: default 1
    vcpus: int | None = None
    #: default 8080; the function sees it as $PORT
    port: int | None = None
    #: HTTP path that answers 2xx when ready, and as a sign of life after a request that was left
    #: or timed out; empty: the port accepts, and any answer to OPTIONS *
    ready_path: str | None = None
    #: boot until ready; default 60s
    ready_timeout: str | None = None
    #: of one invocation, queue included, unless its answer is a stream; default 60s
    timeout: str | None = None
    #: requests at once in one instance; default 1
    concurrency: int | None = None
    #: default 8
    max_instances: int | None = None
    #: that there are to be though nobody asks, as long as the node has room; default 0
    min_instances: int | None = None
    #: policy of how many there are, see package scale; empty: the daemon's default
    scaling: str | None = None
    #: requests that may wait; default 100
    queue_limit: int | None = None
    #: idle time before an instance ends; default 60s
    keep_alive: str | None = None
    rehearsal: Rehearsal | None = None
    #: empty: the daemon's default
    memory_policy: str | None = None
    #: "none" (default), "host" or "nat"
    egress: str | None = None
    #: limit of what it may write to its root; lives in guest memory; default half of MemoryMiB
    disk_mib: int | None = None
    #: HTTP path POSTed by the agent after each restore, before the first request
    clone_hook: str | None = None
    #: set by the daemon
    created: datetime | None = None
    #: set by the daemon: how many times it was deployed or changed
    revision: int | None = None
    #: What of an invocation may take how long, beside Timeout for all of it; see Limits. arrival
    #: until an instance is there for it; 0: as Timeout
    queue_timeout: str | None = None
    #: request sent until the response's header is there; 0: as Timeout
    response_timeout: str | None = None
    #: without a byte of either body; 0: as Timeout
    idle_timeout: str | None = None
    #: in place of Timeout for streams: WebSockets and other upgrades, server-sent events, gRPC; 0:
    #: none
    stream_timeout: str | None = None
    #: share of Concurrency beyond which other instances are started, and get the next requests;
    #: default 1
    target_utilization: float | None = None
    #: where the gateway answers for it
    url: str | None = None
    instances: dict[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class FunctionStatus:
    """FunctionStatus is a line of `skep ls`."""

    name: str
    #: as the user gave it; see package image for the forms
    image: str
    snapshot: SnapshotRule
    snapshots: int
    #: set by the daemon: what Image was when deployed
    image_digest: str | None = None
    #: replaces the image's Cmd (kept after its Entrypoint)
    args: list[str] | None = None
    #: added to the image's
    env: dict[str, str] | None = None
    #: default 256
    memory_mib: int | None = None
    #: default 1
    vcpus: int | None = None
    #: default 8080; the function sees it as $PORT
    port: int | None = None
    #: HTTP path that answers 2xx when ready, and as a sign of life after a request that was left
    #: or timed out; empty: the port accepts, and any answer to OPTIONS *
    ready_path: str | None = None
    #: boot until ready; default 60s
    ready_timeout: str | None = None
    #: of one invocation, queue included, unless its answer is a stream; default 60s
    timeout: str | None = None
    #: requests at once in one instance; default 1
    concurrency: int | None = None
    #: default 8
    max_instances: int | None = None
    #: that there are to be though nobody asks, as long as the node has room; default 0
    min_instances: int | None = None
    #: policy of how many there are, see package scale; empty: the daemon's default
    scaling: str | None = None
    #: requests that may wait; default 100
    queue_limit: int | None = None
    #: idle time before an instance ends; default 60s
    keep_alive: str | None = None
    rehearsal: Rehearsal | None = None
    #: empty: the daemon's default
    memory_policy: str | None = None
    #: "none" (default), "host" or "nat"
    egress: str | None = None
    #: limit of what it may write to its root; lives in guest memory; default half of MemoryMiB
    disk_mib: int | None = None
    #: HTTP path POSTed by the agent after each restore, before the first request
    clone_hook: str | None = None
    #: set by the daemon
    created: datetime | None = None
    #: set by the daemon: how many times it was deployed or changed
    revision: int | None = None
    #: What of an invocation may take how long, beside Timeout for all of it; see Limits. arrival
    #: until an instance is there for it; 0: as Timeout
    queue_timeout: str | None = None
    #: request sent until the response's header is there; 0: as Timeout
    response_timeout: str | None = None
    #: without a byte of either body; 0: as Timeout
    idle_timeout: str | None = None
    #: in place of Timeout for streams: WebSockets and other upgrades, server-sent events, gRPC; 0:
    #: none
    stream_timeout: str | None = None
    #: share of Concurrency beyond which other instances are started, and get the next requests;
    #: default 1
    target_utilization: float | None = None
    #: where the gateway answers for it
    url: str | None = None
    instances: dict[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Image:
    """Image is a root disk in the daemon's store, as `skep image ls` shows it."""

    digest: str
    disk_bytes: int
    #: with a kept revision that is deployed from it, or an instance
    functions: list[str] | None = None
    #: that need it
    snapshots: list[str] | None = None
    #: why it cannot be used
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Instance is one microVM, as `skep ls` and `skep inspect` show it."""

    id: str
    function: str
    state: Literal["starting", "idle", "busy", "draining", "stopped"]
    start: Literal["boot", "restore", "warm", ""]
    vmm: str
    created: datetime
    #: answered so far
    requests: int
    #: in flight now
    active: int
    snapshot: str | None = None
    pid: int | None = None
    slot: str | None = None
    #: Probation: a request was left or not answered in time, and it gets no others until it has
    #: shown that it answers.
    probation: bool | None = None


@dataclass(frozen=True, kw_only=True)
class InstanceUsage:
    """InstanceUsage is what an instance's VMM uses, with its guest's memory."""

    id: str
    function: str
    resident_bytes: int


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """Invocation is the record that every invocation leaves."""

    id: str
    function: str
    #: arrival
    time: datetime
    phases: Phases
    bytes_in: int
    bytes_out: int
    #: HTTP status that the client saw
    status: int
    instance: str | None = None
    #: the snapshot that the instance was restored from
    snapshot: str | None = None
    start: Literal["boot", "restore", "warm", ""] | None = None
    memory: MemoryStats | None = None
    disk: RemoteDisk | None = None
    #: whose doing it is that no complete answer reached the client
    failure: Literal["client", "queue", "timeout", "function", "platform"] | None = None
    #: why skep, not the function, failed it
    error: str | None = None
    #: id of the trace that it is of, in hexadecimal
    trace: str | None = None
    container: Container | None = None


@dataclass(frozen=True, kw_only=True)
class LearnedMemory:
    """LearnedMemory is what restores have shown of a working set."""

    #: observed since the working set was recorded
    restores: int
    #: touched by one of the last eight and not in the working set; -1: not known
    missed_pages: int
    #: in the working set, held back as a sample and not touched; -1: not known
    wasted_pages: int
    #: why what was learned is not used
    problem: str | None = None
    #: starts still to be made without the working set, since it does not pay
    without: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """MemoryStats says what guest memory cost one restored instance. Pages are 4 KiB."""

    policy: str
    #: installed before they were asked for: the working set, and what came beside misses
    prefetched_pages: int
    #: page faults served by userfaultfd
    faults: int
    #: of those and of the prefetched, pages of zeros
    zero_pages: int
    #: beside all these, pages of zeros in blocks where the guest takes fresh memory
    zeroed_ahead_pages: int
    #: touched until the first response, and not in the working set; -1: not known
    missed_pages: int
    #: prefetched and not touched until then, estimated from samples; -1: not known
    wasted_pages: int
    #: from disk or page cache
    bytes_read: int
    #: reading the working set; may overlap VMM start
    fetch_ns: int
    #: putting pages into the guest
    install_ns: int
    #: serving faults, summed over faults
    handler_ns: int
    #: this run recorded the trace
    recorded: bool | None = None
    #: why a policy did something else than asked
    note: str | None = None
    remote: RemoteMemory | None = None


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """PageFile is a file that remembers pages of a snapshot. Without a summary there is none, or
    it is refused for a problem and will be recorded anew.
    """

    recorded: datetime | None = None
    file_bytes: int | None = None
    problem: str | None = None
    summary: PageSummary | None = None


@dataclass(frozen=True, kw_only=True)
class PageMap:
    """PageMap says of every page of a guest what is known. Its sets may overlap; nil is a set that
    is not known.
    """

    #: not a hole in the memory file
    data: list[tuple[int, int]] | None
    #: in the trace
    touched: list[tuple[int, int]] | None
    #: in the working set
    prefetched: list[tuple[int, int]] | None
    #: of those, without contents
    zero: list[tuple[int, int]] | None
    #: touched after a resume, and not prefetched
    missed: list[tuple[int, int]] | None
    #: prefetched, and seen not to be touched
    wasted: list[tuple[int, int]] | None


@dataclass(frozen=True, kw_only=True)
class PageSummary:
    """PageSummary says what a set of guest pages, a trace's or a working set's, is made of. A page
    has 4096 bytes.
    """

    pages: int
    zero_pages: int
    runs: int
    #: pages of a run, on average
    contiguity_pages: float
    longest_run_pages: int
    #: of the pages
    zero_share: float
    #: pages of all pages of the guest
    guest_share: float
    #: of contents
    bytes: int
    #: Of a trace only: first touches by kind, and when they were, counted from when the vCPUs ran.
    reads: int | None = None
    writes: int | None = None
    #: while device state was loaded
    before_resume_pages: int | None = None
    #: of those after
    first_touch_ns: int | None = None
    #: until the last first touch
    span_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Phases are the parts of one invocation on its critical path, in the order in which they
    happen. They do not overlap, so they add up to Total (but for the microseconds between
    them); a part that the start kind does not have is zero. On the wire they are microseconds.
    """

    total_us: int
    boot_us: int | None = None
    clone_us: int | None = None
    connect_us: int | None = None
    init_us: int | None = None
    install_us: int | None = None
    load_us: int | None = None
    process_us: int | None = None
    queue_us: int | None = None
    resume_us: int | None = None
    slot_us: int | None = None
    spawn_us: int | None = None
    stream_us: int | None = None


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """PullRequest asks for a snapshot of the object store."""

    function: str
    #: default: the newest that fits
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class PushedSnapshot:
    """PushedSnapshot says what a push has done, in bytes."""

    id: str
    function: str
    #: of its files, but for zeros
    content_bytes: int
    #: of them that the store did not have
    new_bytes: int
    #: for them
    written_bytes: int
    took: str


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Rehearsal is a request that an instance restored from a new snapshot must answer, with a
    status below 400, before the snapshot is used: a deployment fails where it does not. What
    that needs of the guest's memory is what the first invocations find prefetched. The zero
    value asks only whether the function is there (see ReadyPath).
    """

    #: and query; empty: no request
    path: str | None = None
    #: default GET, with a body POST
    method: str | None = None
    header: dict[str, str] | None = None
    body: str | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteDisk:
    """RemoteDisk says what had come of a root disk from the object store when the first response
    of an instance that started before all of it was here was over, to all that started with it
    until then.
    """

    #: read from the store, as stored
    fetched_bytes: int
    #: as stored, of all of it
    total_bytes: int
    #: times that guests, or their VMMs, waited for a part of it,
    waits: int
    #: in all
    waited_ns: int


@dataclass(frozen=True, kw_only=True)
class RemoteMemory:
    """RemoteMemory says what had come of a snapshot from the object store when the instance's
    first response was over, of all that started from it until then.
    """

    #: from asking for it until the first start from it could begin
    began_ns: int
    #: read from the store, as stored
    fetched_bytes: int
    #: as stored, of all that the node needs of the snapshot, but for its root disk
    total_bytes: int
    #: times that guests waited for a part of its memory,
    waits: int
    #: in all
    waited_ns: int


@dataclass(frozen=True, kw_only=True)
class RemoteSnapshot:
    """RemoteSnapshot is one in the object store."""

    id: str
    function: str
    pushed: datetime
    #: of its chunks
    stored_bytes: int
    #: this node has it
    here: bool
    #: Usable says whether a start here could use it; Problem why not.
    usable: bool
    created: datetime | None = None
    reason: str | None = None
    vmm: str | None = None
    memory_mib: int | None = None
    arriving: Arriving | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report is what was made of an experiment's samples."""

    title: str
    #: when measuring was last begun or resumed
    time: datetime
    #: version
    skep: str
    vmm: str
    cpu: str
    cpus: int
    memory_mib: int
    kernel: str
    disk: str
    #: whether guest code was translated by software
    emulated: bool
    quick: bool
    samples: int
    sections: list[ReportSection]
    #: why this machine's figures differ from the paper's
    reasons: list[str]


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """ReportFigure is a drawing of a report, which is asked for by its name."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """ReportSection is one experiment's part of a report."""

    #: of the experiment
    name: str
    #: of the paper
    figure: str
    title: str
    question: str
    samples: int
    runs: int
    #: a sentence each
    findings: list[str]
    caveats: list[str]
    figures: list[ReportFigure]
    tables: list[ReportTable]


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """ReportTable is a table of a report, as text."""

    name: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Revision is one version of a function, kept so that it can be had back."""

    #: rises with every change, from 1
    number: int
    created: datetime
    #: "deploy", "set timeout, env.LEVEL", "rollback to 3"
    change: str
    image: str
    image_digest: str
    #: kept ones that it can start from
    snapshots: int
    function: Function
    current: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RollbackRequest:
    """RollbackRequest asks for an earlier revision to be in force again."""

    #: 0: the one before
    revision: int | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Snapshot is a published snapshot, as `skep snapshot ls` shows it."""

    id: str
    function: str
    created: datetime
    #: "ready", "after 10 invocations", "asked for"
    reason: str
    #: "qemu 7.2.22 tcg"
    vmm: str
    image_digest: str
    memory_mib: int
    vcpus: int
    #: blocks that it occupies, holes not counted
    disk_bytes: int
    usable: bool
    #: why it is not usable here
    problem: str | None = None
    #: not usable now, but kept for a rollback to the settings before
    rollback: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotMemory:
    """SnapshotMemory is what is known of how guests use the memory of a snapshot."""

    snapshot: str
    function: str
    #: that restores of the function go by
    policy: str
    memory_bytes: int
    #: of the memory file that are not holes
    data_pages: int
    trace: PageFile
    working_set: PageFile
    learned: LearnedMemory
    #: why the memory file cannot be used
    problem: str | None = None
    trial: PageFile | None = None
    map: PageMap | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotRequest:
    """SnapshotRequest asks for a snapshot of a function to be made now."""

    function: str


@dataclass(frozen=True, kw_only=True)
class SnapshotRule:
    """SnapshotRule says when a function's snapshot is made by itself. The zero value makes one as
    soon as the function is ready.
    """

    #: never by itself
    off: bool | None = None
    #: 0: when ready; N: after N invocations of one booted instance
    after_invocations: int | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotUsage:
    """SnapshotUsage is what one snapshot takes in the object store, in bytes."""

    id: str
    function: str
    #: of its files, holes included
    length: int
    #: of them, but for zeros
    content: int
    #: of its chunks
    stored: int
    #: of chunks that no other snapshot has
    own: int


@dataclass(frozen=True, kw_only=True)
class StartPhase:
    """StartPhase is a phase of an instance's start."""

    instance: str
    #: one of PhaseNames, slot to init
    name: str
    took_ns: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """Step is a part of a start, and when it was."""

    name: str
    began: datetime
    took_ns: int


@dataclass(frozen=True, kw_only=True)
class StoreProblem:
    """StoreProblem is what is wrong with a snapshot in the object store."""

    #: FUNCTION/ID
    snapshot: str
    error: str


@dataclass(frozen=True, kw_only=True)
class StoreUsage:
    """StoreUsage is what the object store holds, in bytes."""

    snapshots: list[SnapshotUsage]
    packs: int
    pack_bytes: int
    #: chunks of all snapshots, each once
    needed_bytes: int
    #: packs
    condemned: int
    #: under way
    pushes: int


@dataclass(frozen=True, kw_only=True)
class StoreVerified:
    """StoreVerified says what of the object store was checked."""

    snapshots: int
    chunks: int
    bytes: int
    problems: list[StoreProblem]


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """Ticket lets one browser in, once."""

    ticket: str
    expires: datetime
    #: where the daemon serves the page; empty: nowhere but through `skep dashboard`
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Usage is what a node and its instances use."""

    #: of the host
    memory_bytes: int
    #: of those
    available_bytes: int
    #: requests that wait for an instance, by function
    waiting: dict[str, int]
    instances: list[InstanceUsage]


@dataclass(frozen=True, kw_only=True)
class Version:
    """Version says what a daemon is."""

    version: str
    go: str
    commit: str | None = None
    #: "qemu 7.2.22 tcg"
    vmm: str | None = None
    #: address, host:port
    gateway: str | None = None
    domain: str | None = None
    #: memory policies that can be chosen
    policies: list[str] | None = None
    pid: int | None = None
    started: datetime | None = None


class FunctionSettings(TypedDict, total=False):
    """Settings of a function beside its name and image: those of Function."""

    #: replaces the image's Cmd (kept after its Entrypoint)
    args: list[str]
    #: added to the image's
    env: dict[str, str]
    #: default 256
    memory_mib: int
    #: default 1
    vcpus: int
    #: default 8080; the function sees it as $PORT
    port: int
    #: HTTP path that answers 2xx when ready, and as a sign of life after a request that was left
    #: or timed out; empty: the port accepts, and any answer to OPTIONS *
    ready_path: str
    #: boot until ready; default 60s
    ready_timeout: str
    #: of one invocation, queue included, unless its answer is a stream; default 60s
    timeout: str
    #: requests at once in one instance; default 1
    concurrency: int
    #: default 8
    max_instances: int
    #: that there are to be though nobody asks, as long as the node has room; default 0
    min_instances: int
    #: policy of how many there are, see package scale; empty: the daemon's default
    scaling: str
    #: requests that may wait; default 100
    queue_limit: int
    #: idle time before an instance ends; default 60s
    keep_alive: str
    snapshot: SnapshotRule
    rehearsal: Rehearsal
    #: empty: the daemon's default
    memory_policy: str
    #: "none" (default), "host" or "nat"
    egress: str
    #: limit of what it may write to its root; lives in guest memory; default half of MemoryMiB
    disk_mib: int
    #: HTTP path POSTed by the agent after each restore, before the first request
    clone_hook: str
    #: What of an invocation may take how long, beside Timeout for all of it; see Limits. arrival
    #: until an instance is there for it; 0: as Timeout
    queue_timeout: str
    #: request sent until the response's header is there; 0: as Timeout
    response_timeout: str
    #: without a byte of either body; 0: as Timeout
    idle_timeout: str
    #: in place of Timeout for streams: WebSockets and other upgrades, server-sent events, gRPC; 0:
    #: none
    stream_timeout: str
    #: share of Concurrency beyond which other instances are started, and get the next requests;
    #: default 1
    target_utilization: float


class FunctionPatch(TypedDict, total=False):
    """those settings of a Function that are to change; null is the default"""

    #: replaces the image's Cmd (kept after its Entrypoint)
    args: list[str] | None
    #: HTTP path POSTed by the agent after each restore, before the first request
    clone_hook: str | None
    #: requests at once in one instance; default 1
    concurrency: int | None
    #: limit of what it may write to its root; lives in guest memory; default half of MemoryMiB
    disk_mib: int | None
    #: "none" (default), "host" or "nat"
    egress: str | None
    #: added to the image's
    env: dict[str, str] | None
    #: without a byte of either body; 0: as Timeout
    idle_timeout: str | None
    #: as the user gave it; see package image for the forms
    image: str | None
    #: idle time before an instance ends; default 60s
    keep_alive: str | None
    #: default 8
    max_instances: int | None
    #: default 256
    memory_mib: int | None
    #: empty: the daemon's default
    memory_policy: str | None
    #: that there are to be though nobody asks, as long as the node has room; default 0
    min_instances: int | None
    #: default 8080; the function sees it as $PORT
    port: int | None
    #: requests that may wait; default 100
    queue_limit: int | None
    #: What of an invocation may take how long, beside Timeout for all of it; see Limits. arrival
    #: until an instance is there for it; 0: as Timeout
    queue_timeout: str | None
    #: HTTP path that answers 2xx when ready, and as a sign of life after a request that was left
    #: or timed out; empty: the port accepts, and any answer to OPTIONS *
    ready_path: str | None
    #: boot until ready; default 60s
    ready_timeout: str | None
    rehearsal: dict[str, Any] | None
    #: request sent until the response's header is there; 0: as Timeout
    response_timeout: str | None
    #: policy of how many there are, see package scale; empty: the daemon's default
    scaling: str | None
    snapshot: dict[str, Any] | None
    #: in place of Timeout for streams: WebSockets and other upgrades, server-sent events, gRPC; 0:
    #: none
    stream_timeout: str | None
    #: share of Concurrency beyond which other instances are started, and get the next requests;
    #: default 1
    target_utilization: float | None
    #: of one invocation, queue included, unless its answer is a stream; default 60s
    timeout: str | None
    #: default 1
    vcpus: int | None
