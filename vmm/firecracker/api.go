package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Times that a request may take, beyond what its context allows. Those that
// move guest memory have their own (see transfer).
const (
	ordinary  = 30 * time.Second
	maxAnswer = 64 << 10 // bytes
)

// transfer is for how long a request that moves guest memory may take: at
// 20 MiB/s, and a minute.
func transfer(memoryMiB int) time.Duration {
	return time.Minute + time.Duration(memoryMiB)*50*time.Millisecond
}

// client speaks to the API socket of one process. Requests come one at a time:
// Firecracker has one thread for them.
type client struct {
	http http.Client
	// limit replaces ordinary in tests; 0 does not.
	limit time.Duration
}

// newClient speaks over connections that dial makes.
func newClient(dial func(context.Context) (net.Conn, error)) *client {
	return &client{http: http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxConnsPerHost:    1,
		DisableCompression: true,
	}}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// Error is Firecracker's refusal of a request.
type Error struct {
	Request string // "PUT /snapshot/load"
	Status  int
	Message string // its fault_message
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%s: status %d", e.Request, e.Status)
	}
	return e.Request + ": " + e.Message
}

var errTooSlow = errors.New("no answer from Firecracker in time")

// put and patch send a body that one of the types below describes.
func (c *client) put(ctx context.Context, path string, body any) error {
	return c.do(ctx, http.MethodPut, path, body, ordinary)
}

func (c *client) patch(ctx context.Context, path string, body any) error {
	return c.do(ctx, http.MethodPatch, path, body, ordinary)
}

// do sends the request and reads the answer, all within limit.
func (c *client) do(ctx context.Context, method, path string, body any, limit time.Duration) error {
	if c.limit != 0 {
		limit = c.limit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooSlow)
	defer cancel()
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	// A reader of known length, so that it has a Content-Length: Firecracker
	// knows no chunks.
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}, "User-Agent": {""}}
	resp, err := c.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: reading the answer: %w", method, path, err)
	}
	if resp.StatusCode/100 == 2 {
		return nil
	}
	refusal := &Error{Request: method + " " + path, Status: resp.StatusCode}
	var fault struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(answer, &fault) == nil {
		refusal.Message = fault.Message
	}
	return refusal
}

// The bodies of requests, with the fields that this package sets.

type machineConfig struct {
	VCPUs     int `json:"vcpu_count"`
	MemoryMiB int `json:"mem_size_mib"`
}

type bootSource struct {
	Kernel  string `json:"kernel_image_path"`
	Initrd  string `json:"initrd_path,omitempty"`
	Cmdline string `json:"boot_args"`
}

type drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	Root     bool   `json:"is_root_device"`
	ReadOnly bool   `json:"is_read_only"`
}

type networkInterface struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
	MAC string `json:"guest_mac"`
}

type action struct {
	Type string `json:"action_type"` // InstanceStart
}

type vmState struct {
	State string `json:"state"` // Paused, Resumed
}

type snapshotCreate struct {
	Type   string `json:"snapshot_type"` // Full, Diff
	State  string `json:"snapshot_path"`
	Memory string `json:"mem_file_path"`
}

type snapshotLoad struct {
	State    string            `json:"snapshot_path"`
	Memory   memoryBackend     `json:"mem_backend"`
	Networks []networkOverride `json:"network_overrides,omitempty"`
}

type memoryBackend struct {
	Type string `json:"backend_type"` // File, Uffd
	Path string `json:"backend_path"`
}

type networkOverride struct {
	ID  string `json:"iface_id"`
	Tap string `json:"host_dev_name"`
}
