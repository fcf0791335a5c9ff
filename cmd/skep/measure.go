package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
)

// variant is one way of starting that is measured.
type variant struct {
	start  api.StartKind
	policy string // of a restore
}

func (v variant) String() string {
	if v.policy != "" {
		return string(v.start) + " " + v.policy
	}
	return string(v.start)
}

// sample is one measured invocation: a line of a benchmark's raw data.
type sample struct {
	Run     int            `json:"run"`
	Variant string         `json:"variant"`
	Cold    string         `json:"cold"` // what was dropped from the page cache before
	Record  api.Invocation `json:"record"`
}

// What is dropped from the page cache before a cold start.
const (
	coldNone  = "none"
	coldFiles = "files" // the snapshot's files and the root disk
	coldAll   = "all"   // and the VMM's binary
)

// measurement invokes one function of a daemon of its own in many ways.
type measurement struct {
	d        *daemon
	client   *api.Client
	function string
	path     string
	cold     string
}

// one makes one invocation and returns its record. Before a start it waits for
// the end of all instances (they hold pages of the snapshot in the page cache),
// and drops caches; before a warm one it makes sure that an instance is idle.
func (m *measurement) one(ctx context.Context, run int, v variant) (sample, error) {
	s := sample{Run: run, Variant: v.String(), Cold: coldNone}
	if v.start == api.StartWarm {
		if _, err := m.invoke(ctx, variant{}); err != nil {
			return s, err
		}
	} else {
		if err := m.quiet(ctx); err != nil {
			return s, err
		}
		s.Cold = m.cold
		if err := m.chill(ctx); err != nil {
			return s, err
		}
	}
	var err error
	s.Record, err = m.invoke(ctx, v)
	return s, err
}

func (m *measurement) invoke(ctx context.Context, v variant) (api.Invocation, error) {
	resp, err := m.client.Invoke(ctx, api.InvokeRequest{Function: m.function, Path: m.path, Start: v.start, Policy: v.policy})
	if err != nil {
		return api.Invocation{}, err
	}
	defer resp.Body.Close()
	if err := skepError(m.function, resp); err != nil {
		return api.Invocation{}, fmt.Errorf("%s start of %s: %w", v, m.function, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return api.Invocation{}, err
	}
	rec, err := record(ctx, m.client, resp)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &functionError{function: m.function, status: resp.StatusCode}
	}
	return rec, err
}

// quiet waits until the function has no instance.
func (m *measurement) quiet(ctx context.Context) error {
	for {
		list, err := m.client.Instances(ctx, m.function)
		if err != nil || len(list) == 0 {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// chill drops the files of the next start from the page cache.
func (m *measurement) chill(ctx context.Context) error {
	if m.cold == coldNone {
		return nil
	}
	files, err := m.d.filesOf(ctx, m.function)
	if err != nil {
		return err
	}
	if m.cold == coldAll {
		files = append(files, m.d.vmmBinary())
	}
	for _, path := range files {
		if path == "" {
			continue
		}
		if err := dropCache(path); err != nil {
			return err
		}
	}
	return nil
}

// dropCache takes a file out of the page cache. Pages that are mapped stay.
func dropCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("dropping from the page cache: %w", err)
	}
	defer f.Close()
	// Only clean pages can be dropped.
	if err := unix.Fdatasync(int(f.Fd())); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("writing back %s: %w", path, err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("dropping %s from the page cache: %w", path, err)
	}
	return nil
}

// machine describes the host that numbers were measured on.
type machine struct {
	Time      time.Time `json:"time"`
	Skep      string    `json:"skep"`
	CPU       string    `json:"cpu"`
	CPUs      int       `json:"cpus"`
	MemoryMiB int64     `json:"memory_mib"`
	Kernel    string    `json:"kernel"`
	VMM       string    `json:"vmm"`
	Disk      string    `json:"disk"` // file system of the data directory
	Go        string    `json:"go"`
}

func describeMachine(v api.Version, dataDir string) machine {
	m := machine{
		Time: time.Now().UTC(), Skep: strings.TrimSpace(v.Version + " " + v.Commit),
		CPU: cpuModel(), CPUs: runtime.NumCPU(), VMM: v.VMM, Go: runtime.Version(), Disk: fileSystem(dataDir),
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemoryMiB = int64(si.Totalram) * int64(si.Unit) >> 20
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return m
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fileSystem names the type and device of the file system that holds path, as
// /proc/self/mountinfo has them.
func fileSystem(path string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	best, name := -1, ""
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 2 {
			continue
		}
		mount := strings.TrimSuffix(f[4], "/")
		if (path == f[4] || strings.HasPrefix(path, mount+"/")) && len(mount) > best {
			best, name = len(mount), g[0]+" on "+g[1]
		}
	}
	return name
}
