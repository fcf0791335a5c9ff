package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment"
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
	rec, _, err := m.timed(ctx, v)
	return rec, err
}

// timed is invoke that also says how long the client waited for all of the answer.
func (m *measurement) timed(ctx context.Context, v variant) (rec api.Invocation, took time.Duration, err error) {
	began := time.Now()
	resp, err := m.client.Invoke(ctx, api.InvokeRequest{Function: m.function, Path: m.path, Start: v.start, Policy: v.policy})
	if err != nil {
		return rec, 0, err
	}
	defer resp.Body.Close()
	if err := skepError(m.function, resp); err != nil {
		return rec, 0, fmt.Errorf("%s start of %s: %w", v, m.function, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return rec, 0, err
	}
	took = time.Since(began)
	rec, err = record(ctx, m.client, resp)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &functionError{function: m.function, status: resp.StatusCode}
	}
	return rec, took, err
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
		files = append(files, m.d.program)
	}
	_, err = experiment.DropCache(files)
	return err
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
	d := experiment.Describe(v, dataDir, experiment.Settings{})
	return machine{
		Time: d.Time, Skep: d.Skep, CPU: d.CPU, CPUs: d.CPUs, MemoryMiB: d.MemoryMiB,
		Kernel: d.Kernel, VMM: d.VMM, Disk: d.Disk, Go: d.Go,
	}
}
