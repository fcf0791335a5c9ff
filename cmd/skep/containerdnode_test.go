package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/testenv"
)

// A kernel that an image brings is copied once, whatever a copy has left that was cut
// short.
func TestCopyKernels(t *testing.T) {
	from, to := testenv.KernelStore(t), t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		half := filepath.Join(to, ".copy-"+e.Name())
		if err := errors.Join(os.MkdirAll(half, 0o755), os.WriteFile(filepath.Join(half, "half"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	step, err := copyKernels(from, to)
	if err != nil || step == "" {
		t.Fatalf("%q, %v", step, err)
	}
	want, err := kernel.Default(from)
	if err != nil {
		t.Fatal(err)
	}
	got, err := kernel.Default(to)
	if err != nil || got.Digest != want.Digest {
		t.Errorf("%+v, %v: want %+v", got, err, want)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(got.Path), "half")); err == nil {
		t.Error("what a copy has left is in the kernel's directory")
	}
	if step, err := copyKernels(from, to); err != nil || step != "" {
		t.Errorf("a second time: %q, %v", step, err)
	}
	if _, err := copyKernels(t.TempDir(), t.TempDir()); err == nil {
		t.Error("no kernel at all is fine")
	}
}

const listenEnv = "SKEP_TEST_LISTEN"

// TestListens is a process that answers at a socket, for the next test.
func TestListens(t *testing.T) {
	path := os.Getenv(listenEnv)
	if path == "" {
		t.Skip("it is run by TestNodeRestartsContainerd")
	}
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	for {
		if conn, err := l.Accept(); err == nil {
			conn.Close()
		}
	}
}

// containerd is restarted when its configuration has changed, also when who changed it
// was killed before; and not without need.
func TestNodeRestartsContainerd(t *testing.T) {
	from := t.TempDir()
	for _, name := range containerd.Programs {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h := containerd.Host{Root: testenv.Dir(t), Version: "1.7.24", Containerd: "/nonexistent/containerd"}
	socket := filepath.Join(h.Root, containerd.Socket)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	var starts atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { // supervises it
		defer close(over)
		for ctx.Err() == nil {
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestListens$")
			cmd.Env = append(os.Environ(), listenEnv+"="+socket)
			starts.Add(1)
			_ = cmd.Run() // it is killed
		}
	}()
	defer func() { cancel(); <-over }()
	for conn, err := net.Dial("unix", socket); ; conn, err = net.Dial("unix", socket) {
		if err == nil {
			conn.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	equip := func(remove bool, want int32) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- (&cli{out: io.Discard, err: io.Discard}).equipNode(ctx, h, from, remove) }()
		for ctx.Err() == nil {
			there, err := h.Configured(ctx)
			if err != nil {
				t.Error(err)
			}
			if there != remove && !h.Pending() && starts.Load() >= want {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := starts.Load(); got != want {
			t.Errorf("containerd was started %d times: want %d", got, want)
		}
	}
	equip(false, 2)
	equip(false, 2)
	if err := h.Pend(true); err != nil { // and killed
		t.Fatal(err)
	}
	equip(false, 3)
	equip(true, 4)
}
