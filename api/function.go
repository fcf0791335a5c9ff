package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Function is what a user deploys: an image and how to run it. The zero value
// of every field but Name and Image means its default (see WithDefaults).
type Function struct {
	Name         string            `json:"name"`
	Image        string            `json:"image"`                   // as the user gave it; see package image for the forms
	ImageDigest  string            `json:"image_digest,omitempty"`  // set by the daemon: what Image was when deployed
	Args         []string          `json:"args,omitempty"`          // replaces the image's Cmd (kept after its Entrypoint)
	Env          map[string]string `json:"env,omitempty"`           // added to the image's
	MemoryMiB    int               `json:"memory_mib,omitempty"`    // default 256
	VCPUs        int               `json:"vcpus,omitempty"`         // default 1
	Port         int               `json:"port,omitempty"`          // default 8080; the function sees it as $PORT
	ReadyPath    string            `json:"ready_path,omitempty"`    // HTTP path that answers 2xx when ready, and as a sign of life after a request that was left or timed out; empty: the port accepts, and any answer to OPTIONS *
	ReadyTimeout Duration          `json:"ready_timeout,omitempty"` // boot until ready; default 60s
	Timeout      Duration          `json:"timeout,omitempty"`       // of one invocation, queue included, unless its answer is a stream; default 60s
	Concurrency  int               `json:"concurrency,omitempty"`   // requests at once in one instance; default 1
	MaxInstances int               `json:"max_instances,omitempty"` // default 8
	MinInstances int               `json:"min_instances,omitempty"` // that there are to be though nobody asks, as long as the node has room; default 0
	Scaling      string            `json:"scaling,omitempty"`       // policy of how many there are, see package scale; empty: the daemon's default
	QueueLimit   int               `json:"queue_limit,omitempty"`   // requests that may wait; default 100
	KeepAlive    Duration          `json:"keep_alive,omitempty"`    // idle time before an instance ends; default 60s
	Snapshot     SnapshotRule      `json:"snapshot"`
	Rehearsal    Rehearsal         `json:"rehearsal,omitzero"`      // request that a new snapshot is tried with
	MemoryPolicy string            `json:"memory_policy,omitempty"` // empty: the daemon's default
	Egress       string            `json:"egress,omitempty"`        // "none" (default), "host" or "nat"
	DiskMiB      int               `json:"disk_mib,omitempty"`      // limit of what it may write to its root; lives in guest memory; default half of MemoryMiB
	CloneHook    string            `json:"clone_hook,omitempty"`    // HTTP path POSTed by the agent after each restore, before the first request
	Created      time.Time         `json:"created,omitzero"`        // set by the daemon
	Revision     int               `json:"revision,omitempty"`      // set by the daemon: how many times it was deployed or changed

	// What of an invocation may take how long, beside Timeout for all of it; see Limits.
	QueueTimeout    Duration `json:"queue_timeout,omitempty"`    // arrival until an instance is there for it; 0: as Timeout
	ResponseTimeout Duration `json:"response_timeout,omitempty"` // request sent until the response's header is there; 0: as Timeout
	IdleTimeout     Duration `json:"idle_timeout,omitempty"`     // without a byte of either body; 0: as Timeout
	StreamTimeout   Duration `json:"stream_timeout,omitempty"`   // in place of Timeout for streams: WebSockets and other upgrades, server-sent events, gRPC; 0: none

	TargetUtilization float64 `json:"target_utilization,omitempty"` // share of Concurrency beyond which other instances are started, and get the next requests; default 1
}

// Limits are how long the parts of an invocation may take. Those of Function
// that are 0 follow Timeout here, so that whoever sets that one alone is not cut
// short by another.
type Limits struct {
	// Queue is from the arrival until there is an instance for the invocation.
	Queue time.Duration
	// Response is from when all of the request has been sent to the function
	// until the header of its response is there.
	Response time.Duration
	// Idle is how long no byte of the request's or the response's body may move
	// while one of the two is under way, or of an upgraded connection, in either
	// direction. A client that does not read what it asked for, or does not send
	// what it announced, is cut off by it, and so is a function.
	Idle time.Duration
	// Total is from the arrival until the last byte of an ordinary answer; Stream
	// takes its place for a stream, 0 for no limit. A stream is an upgraded
	// connection (WebSocket), a response of type text/event-stream, or gRPC.
	Total, Stream time.Duration
}

// Limits returns the limits of one invocation of a function with its defaults.
func (f Function) Limits() Limits {
	l := Limits{f.QueueTimeout.D(), f.ResponseTimeout.D(), f.IdleTimeout.D(), f.Timeout.D(), f.StreamTimeout.D()}
	for _, d := range []*time.Duration{&l.Queue, &l.Response, &l.Idle} {
		if *d == 0 {
			*d = l.Total
		}
	}
	return l
}

// SnapshotRule says when a function's snapshot is made by itself. The zero
// value makes one as soon as the function is ready.
type SnapshotRule struct {
	Off              bool `json:"off,omitempty"`               // never by itself
	AfterInvocations int  `json:"after_invocations,omitempty"` // 0: when ready; N: after N invocations of one booted instance
}

// Rehearsal is a request that an instance restored from a new snapshot must answer,
// with a status below 400, before the snapshot is used: a deployment fails
// where it does not. What that needs of the guest's memory is what the first
// invocations find prefetched. The zero value asks only whether the function is there
// (see ReadyPath).
type Rehearsal struct {
	Path   string            `json:"path,omitempty"`   // and query; empty: no request
	Method string            `json:"method,omitempty"` // default GET, with a body POST
	Header map[string]string `json:"header,omitempty"`
	Body   string            `json:"body,omitempty"`
}

// IsZero says that there is no request.
func (r Rehearsal) IsZero() bool {
	return r.Path == "" && r.Method == "" && len(r.Header) == 0 && r.Body == ""
}

// String is what is asked for: "POST /resize".
func (r Rehearsal) String() string {
	if r.Path == "" {
		return ""
	}
	return r.method() + " " + r.Path
}

func (r Rehearsal) method() string {
	if r.Method == "" && r.Body != "" {
		return http.MethodPost
	}
	return cmp.Or(r.Method, http.MethodGet)
}

// maxRehearsal bounds a rehearsal's header and body, in bytes.
const maxRehearsal = 64 << 10

func (r Rehearsal) validate() error {
	if r.IsZero() {
		return nil
	}
	if r.Path == "" {
		return errors.New("rehearsal has no path: name the one that is asked for, such as /")
	}
	size := len(r.Body)
	for k, v := range r.Header {
		if v == Hidden {
			return fmt.Errorf("rehearsal.header %q has the value that stands for one that is not told: give its own", k)
		}
		size += len(k) + len(v)
	}
	if size > maxRehearsal {
		return fmt.Errorf("rehearsal's header and body take %d bytes: want at most %d", size, maxRehearsal)
	}
	if _, err := r.Request("http://function"); err != nil {
		return fmt.Errorf("rehearsal: %w", err)
	}
	return nil
}

// Request makes the request, to a server at a URL without a path.
func (r Rehearsal) Request(base string) (*http.Request, error) {
	if !strings.HasPrefix(r.Path, "/") || len(r.Path) > 1024 || strings.ContainsAny(r.Path, " \r\n") {
		return nil, fmt.Errorf("path is %q: want an HTTP path that starts with /", r.Path)
	}
	req, err := http.NewRequest(r.method(), base+r.Path, strings.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	for k, v := range r.Header {
		if !httpguts.ValidHeaderFieldName(k) || !httpguts.ValidHeaderFieldValue(v) {
			return nil, fmt.Errorf("%q is no header field", k)
		}
		req.Header.Set(k, v)
	}
	return req, nil
}

// Egress settings.
const (
	EgressNone = "none" // it reaches nothing
	EgressHost = "host" // it reaches the services of the host that the daemon's settings name
	EgressNAT  = "nat"  // it reaches what the host reaches, but for the host itself
)

var (
	nameRE    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	envRE     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	scalingRE = regexp.MustCompile(`^[A-Za-z0-9:=.,+-]*$`)
	policyRE  = regexp.MustCompile(`^[a-z0-9-]*$`)
)

// In bytes; see snapshot.ValidID for why they are not in the expressions.
const maxName, maxPolicy = 63, 32

// maxImage bounds a reference to an image, in bytes: a path and a tag.
const maxImage = 4096 + 256

// WithDefaults returns the function with every zero setting replaced by its default.
func (f Function) WithDefaults() Function {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	defD := func(p *Duration, v time.Duration) {
		if *p == 0 {
			*p = Duration(v)
		}
	}
	def(&f.MemoryMiB, 256)
	def(&f.VCPUs, 1)
	def(&f.Port, 8080)
	def(&f.Concurrency, 1)
	def(&f.MaxInstances, 8)
	def(&f.QueueLimit, 100)
	def(&f.DiskMiB, f.MemoryMiB/2)
	defD(&f.ReadyTimeout, 60*time.Second)
	defD(&f.Timeout, 60*time.Second)
	defD(&f.KeepAlive, 60*time.Second)
	if f.Egress == "" {
		f.Egress = EgressNone
	}
	return f
}

// Validate reports the first thing wrong with a function that has its defaults.
// Every message names the setting, its value and what would be right.
func (f Function) Validate() error {
	between := func(name string, v, lo, hi int) error {
		if v < lo || v > hi {
			return fmt.Errorf("function %q: %s is %d: want %d to %d", f.Name, name, v, lo, hi)
		}
		return nil
	}
	if len(f.Name) > maxName || !nameRE.MatchString(f.Name) {
		return fmt.Errorf("function name %q: want 1 to 63 of a-z, 0-9 and -, not starting or ending with - (it becomes a host name)", f.Name)
	}
	if f.Image == "" {
		return fmt.Errorf("function %q: no image given", f.Name)
	}
	if len(f.Image) > maxImage {
		return fmt.Errorf("function %q: image is a reference of %d bytes: want at most %d", f.Name, len(f.Image), maxImage)
	}
	for _, err := range []error{
		between("memory_mib", f.MemoryMiB, 64, 64<<10),
		between("vcpus", f.VCPUs, 1, 64),
		between("port", f.Port, 1, 65535),
		between("concurrency", f.Concurrency, 1, 10000),
		between("max_instances", f.MaxInstances, 1, 10000),
		between("min_instances", f.MinInstances, 0, f.MaxInstances),
		between("queue_limit", f.QueueLimit, 1, 1000000),
		between("disk_mib", f.DiskMiB, 1, f.MemoryMiB),
		between("snapshot.after_invocations", f.Snapshot.AfterInvocations, 0, 1000000),
	} {
		if err != nil {
			return err
		}
	}
	for name, d := range map[string]Duration{"ready_timeout": f.ReadyTimeout, "timeout": f.Timeout, "keep_alive": f.KeepAlive} {
		if d < Duration(time.Millisecond) || d > Duration(24*time.Hour) {
			return fmt.Errorf("function %q: %s is %v: want 1ms to 24h", f.Name, name, d)
		}
	}
	for name, d := range map[string]Duration{"queue_timeout": f.QueueTimeout, "response_timeout": f.ResponseTimeout, "idle_timeout": f.IdleTimeout, "stream_timeout": f.StreamTimeout} {
		if d != 0 && (d < Duration(time.Millisecond) || d > Duration(30*24*time.Hour)) {
			return fmt.Errorf("function %q: %s is %v: want 1ms to 720h, or 0 for its default", f.Name, name, d)
		}
	}
	for name, p := range map[string]string{"ready_path": f.ReadyPath, "clone_hook": f.CloneHook} {
		if p != "" && (!strings.HasPrefix(p, "/") || len(p) > 1024 || strings.ContainsAny(p, " \r\n")) {
			return fmt.Errorf("function %q: %s is %q: want an HTTP path that starts with /", f.Name, name, p)
		}
	}
	if !(f.TargetUtilization == 0 || f.TargetUtilization >= 0.01 && f.TargetUtilization <= 1) {
		return fmt.Errorf("function %q: target_utilization is %v: want 0.01 to 1, or 0 for its default, 1", f.Name, f.TargetUtilization)
	}
	if err := f.Rehearsal.validate(); err != nil {
		return fmt.Errorf("function %q: %w", f.Name, err)
	}
	if f.Egress != EgressNone && f.Egress != EgressHost && f.Egress != EgressNAT {
		return fmt.Errorf("function %q: egress is %q: want %q, %q or %q", f.Name, f.Egress, EgressNone, EgressHost, EgressNAT)
	}
	if len(f.MemoryPolicy) > maxPolicy || !policyRE.MatchString(f.MemoryPolicy) {
		return fmt.Errorf("function %q: memory_policy is %q: want a policy's name", f.Name, f.MemoryPolicy)
	}
	if len(f.Scaling) > 256 || !scalingRE.MatchString(f.Scaling) {
		return fmt.Errorf("function %q: scaling is %q: want a policy with its parameters, as fixed:keep-alive=10m", f.Name, f.Scaling)
	}
	size := 0
	for k, v := range f.Env {
		if !envRE.MatchString(k) || strings.ContainsRune(v, 0) {
			return fmt.Errorf("function %q: environment variable %q: want letters, digits and _, and a value without NUL", f.Name, k)
		}
		if v == Hidden {
			return fmt.Errorf("function %q: environment variable %q has the value that stands for one that is not told: give its own, or leave it out of a change", f.Name, k)
		}
		size += len(k) + len(v) + 2
	}
	for _, a := range f.Args {
		size += len(a) + 1
	}
	if size > 64<<10 {
		return fmt.Errorf("function %q: args and environment take %d bytes: want at most 64 KiB", f.Name, size)
	}
	return nil
}
