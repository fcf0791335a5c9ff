// Package api holds skep's shared nouns: what a function, an instance, a
// snapshot and an invocation's record are, how they look on the wire, and the
// client that speaks to the daemon's control socket. It imports nothing of
// skep; everything else may import it.
package api

import (
	"encoding/json"
	"fmt"
	"time"
)

// Duration is a time.Duration that reads and writes as "1.5s" in JSON and TOML.
type Duration time.Duration

// D returns the plain time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the form that time.ParseDuration reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads "300ms", "1.5s", "2m".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, such as 300ms, 1.5s or 2m", b)
	}
	*d = Duration(v)
	return nil
}

// StartKind says how the instance that answered an invocation came to be.
type StartKind string

const (
	StartBoot    StartKind = "boot"    // a kernel was booted for it
	StartRestore StartKind = "restore" // it was restored from a snapshot
	StartWarm    StartKind = "warm"    // it was running and idle
)

// Phases are the parts of one invocation on its critical path, in the order in
// which they happen. They do not overlap, so they add up to Total (but for the
// microseconds between them); a part that the start kind does not have is zero.
// On the wire they are microseconds.
type Phases struct {
	Queue   time.Duration // waiting for an instance to become free, or for leave to start one
	Slot    time.Duration // taking a network slot
	Spawn   time.Duration // VMM process: exec until its control channel answers
	Load    time.Duration // restore: device state read and applied
	Install time.Duration // restore: waiting for guest memory that the policy wants there before the vCPUs resume
	Resume  time.Duration // restore: the order to run until the VMM says it runs
	Boot    time.Duration // boot: kernel and agent, until the agent answers
	Clone   time.Duration // restore: the agent has answered the clone message (entropy, time, identity)
	Init    time.Duration // boot: the function's entrypoint, until it is ready
	Connect time.Duration // TCP connection to the function's server
	Process time.Duration // request sent until the first byte of the response's header is there
	Stream  time.Duration // first byte until the last byte of the response's body
	Total   time.Duration // request in to response out
}

// PhaseNames are the names of the fields of Phases on the wire, in order.
var PhaseNames = []string{"queue", "slot", "spawn", "load", "install", "resume", "boot", "clone", "init", "connect", "process", "stream", "total"}

// Each calls f for every phase in the order of PhaseNames.
func (p *Phases) Each(f func(name string, d time.Duration)) {
	for i, d := range p.fields() {
		f(PhaseNames[i], *d)
	}
}

func (p *Phases) fields() []*time.Duration {
	return []*time.Duration{&p.Queue, &p.Slot, &p.Spawn, &p.Load, &p.Install, &p.Resume, &p.Boot, &p.Clone, &p.Init, &p.Connect, &p.Process, &p.Stream, &p.Total}
}

// MarshalJSON writes {"queue_us": 12, …}, leaving out zero phases but total.
func (p Phases) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, d := range p.fields() {
		if *d == 0 && PhaseNames[i] != "total" {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = fmt.Appendf(out, "%q:%d", PhaseNames[i]+"_us", d.Microseconds())
	}
	return append(out, '}'), nil
}

// UnmarshalJSON reads what MarshalJSON writes and refuses unknown names.
func (p *Phases) UnmarshalJSON(b []byte) error {
	var m map[string]int64
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for i, d := range p.fields() {
		key := PhaseNames[i] + "_us"
		*d = time.Duration(m[key]) * time.Microsecond
		delete(m, key)
	}
	for k := range m {
		return fmt.Errorf("phases: unknown phase %q", k)
	}
	return nil
}

// MemoryStats says what guest memory cost one restored instance. Pages are 4 KiB.
type MemoryStats struct {
	Policy      string        `json:"policy"`
	Prefetched  int64         `json:"prefetched_pages"`   // installed before they were asked for: the working set, and what came beside misses
	Faults      int64         `json:"faults"`             // page faults served by userfaultfd
	ZeroPages   int64         `json:"zero_pages"`         // of those and of the prefetched, pages of zeros
	ZeroedAhead int64         `json:"zeroed_ahead_pages"` // beside all these, pages of zeros in blocks where the guest takes fresh memory
	Missed      int64         `json:"missed_pages"`       // touched until the first response, and not in the working set; -1: not known
	Wasted      int64         `json:"wasted_pages"`       // prefetched and not touched until then, estimated from samples; -1: not known
	BytesRead   int64         `json:"bytes_read"`         // from disk or page cache
	FetchTime   time.Duration `json:"fetch_ns"`           // reading the working set; may overlap VMM start
	InstallTime time.Duration `json:"install_ns"`         // putting pages into the guest
	HandlerTime time.Duration `json:"handler_ns"`         // serving faults, summed over faults
	Recorded    bool          `json:"recorded,omitempty"` // this run recorded the trace
	Note        string        `json:"note,omitempty"`     // why a policy did something else than asked
	// Remote is of a snapshot whose memory was not all here yet when the instance started.
	Remote *RemoteMemory `json:"remote,omitempty"`
}

// RemoteMemory says what had come of a snapshot from the object store when the instance's first
// response was over, of all that started from it until then.
type RemoteMemory struct {
	Began   time.Duration `json:"began_ns"`      // from asking for it until the first start from it could begin
	Fetched int64         `json:"fetched_bytes"` // read from the store, as stored
	Total   int64         `json:"total_bytes"`   // as stored, of all that the node needs of the snapshot, but for its root disk
	Waits   int64         `json:"waits"`         // times that guests waited for a part of its memory,
	Waited  time.Duration `json:"waited_ns"`     // in all
}

// RemoteDisk says what had come of a root disk from the object store when the first response of an
// instance that started before all of it was here was over, to all that started with it until then.
type RemoteDisk struct {
	Fetched int64         `json:"fetched_bytes"` // read from the store, as stored
	Total   int64         `json:"total_bytes"`   // as stored, of all of it
	Waits   int64         `json:"waits"`         // times that guests, or their VMMs, waited for a part of it,
	Waited  time.Duration `json:"waited_ns"`     // in all
}

// Invocation is the record that every invocation leaves.
type Invocation struct {
	ID       string       `json:"id"`
	Function string       `json:"function"`
	Instance string       `json:"instance,omitempty"`
	Snapshot string       `json:"snapshot,omitempty"` // the snapshot that the instance was restored from
	Start    StartKind    `json:"start,omitempty"`
	Time     time.Time    `json:"time"` // arrival
	Phases   Phases       `json:"phases"`
	Memory   *MemoryStats `json:"memory,omitempty"` // only for restore starts
	Disk     *RemoteDisk  `json:"disk,omitempty"`   // only for starts before all of the root disk was here
	BytesIn  int64        `json:"bytes_in"`
	BytesOut int64        `json:"bytes_out"`
	Status   int          `json:"status"`            // HTTP status that the client saw
	Failure  Failure      `json:"failure,omitempty"` // whose doing it is that no complete answer reached the client
	Error    string       `json:"error,omitempty"`   // why skep, not the function, failed it
	Trace    string       `json:"trace,omitempty"`   // id of the trace that it is of, in hexadecimal
	// Container is of a record that is not of a request: of a container's start, under
	// containerd. Its function is the container's revision.
	Container *Container `json:"container,omitempty"`
}

// Failure says whose doing it is that an invocation did not end with a complete
// answer of the function's. It decides what becomes of the instance, and
// metrics count by it. Empty: the function's answer, whatever its status,
// reached the client whole.
type Failure string

const (
	FailureClient   Failure = "client"   // it left, or sent what is not HTTP: the instance did nothing wrong
	FailureQueue    Failure = "queue"    // no instance was to be had: the queue was full, or the wait too long
	FailureTimeout  Failure = "timeout"  // the instance did not answer, or not go on, in time: it may hang
	FailureFunction Failure = "function" // the instance's server refused, broke off, or answered what is not HTTP
	FailurePlatform Failure = "platform" // skep could not start an instance, or lost it
)

// InstanceState is a state of an instance; node has the machine of transitions.
type InstanceState string

const (
	InstanceStarting InstanceState = "starting" // slot, VMM, boot or restore, until ready
	InstanceIdle     InstanceState = "idle"     // ready, no request
	InstanceBusy     InstanceState = "busy"     // at least one request
	InstanceDraining InstanceState = "draining" // takes no new request, ends when the last is answered
	InstanceStopped  InstanceState = "stopped"  // everything it held is released
)

// Instance is one microVM, as `skep ls` and `skep inspect` show it.
type Instance struct {
	ID       string        `json:"id"`
	Function string        `json:"function"`
	State    InstanceState `json:"state"`
	Start    StartKind     `json:"start"`
	Snapshot string        `json:"snapshot,omitempty"`
	VMM      string        `json:"vmm"`
	PID      int           `json:"pid,omitempty"`
	Slot     string        `json:"slot,omitempty"`
	Created  time.Time     `json:"created"`
	Requests int64         `json:"requests"` // answered so far
	Active   int           `json:"active"`   // in flight now
	// Probation: a request was left or not answered in time, and it gets no others
	// until it has shown that it answers.
	Probation bool `json:"probation,omitempty"`
}

// Snapshot is a published snapshot, as `skep snapshot ls` shows it.
type Snapshot struct {
	ID          string    `json:"id"`
	Function    string    `json:"function"`
	Created     time.Time `json:"created"`
	Reason      string    `json:"reason"` // "ready", "after 10 invocations", "asked for"
	VMM         string    `json:"vmm"`    // "qemu 7.2.22 tcg"
	ImageDigest string    `json:"image_digest"`
	MemoryMiB   int       `json:"memory_mib"`
	VCPUs       int       `json:"vcpus"`
	DiskBytes   int64     `json:"disk_bytes"` // blocks that it occupies, holes not counted
	Usable      bool      `json:"usable"`
	Problem     string    `json:"problem,omitempty"`  // why it is not usable here
	Rollback    bool      `json:"rollback,omitempty"` // not usable now, but kept for a rollback to the settings before
}
