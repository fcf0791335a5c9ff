package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// testGuestEnds: a guest that ends by itself ends its machine.
func (s *suite) testGuestEnds(t *testing.T) {
	for _, how := range []string{"exit", "poweroff", "reboot"} {
		t.Run(how, func(t *testing.T) {
			if slices.Contains(s.lacks, how) {
				t.Skipf("this VMM lacks %s by nature", how)
			}
			c := s.config
			c.Cmdline += " vmmtest=" + how
			i := s.boot(t, s.host(t), c)
			select {
			case <-i.Done():
			case <-s.context(t).Done():
				t.Fatalf("the machine goes on:\n%s", i.console(t))
			}
			if err := i.Err(); err == nil || !strings.Contains(err.Error(), "guest") {
				t.Errorf("Err is %v; want that the guest ended", err)
			}
		})
	}
}

// testConsoleIsBounded: a guest that prints for ever fills no disk, and can
// still be paused and killed. The bound is small, since a serial port is slow
// below two hypervisors.
func (s *suite) testConsoleIsBounded(t *testing.T) {
	c := s.config
	c.Cmdline += " vmmtest=flood"
	h := s.host(t)
	h.ConsoleBytes = 8 << 10
	i := s.boot(t, h, c)
	ctx := s.context(t)
	log := filepath.Join(h.Dir, "console.log")
	// Twice, so that the guest has gone on after the first file was full.
	var first os.FileInfo
	for full := 0; full < 2; {
		st, err := os.Stat(log + ".1")
		if err == nil && !os.SameFile(first, st) {
			first, full = st, full+1
			continue
		}
		select {
		case <-i.Done():
			t.Fatalf("the machine ended: %v", i.Err())
		case <-ctx.Done():
			t.Fatalf("after %d full files the guest prints no more:\n%s", full, i.console(t))
		case <-time.After(time.Millisecond):
		}
	}
	if err := i.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	i.end(t)
	var size int64
	for _, name := range []string{log, log + ".1"} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if size == 0 || size > h.ConsoleBytes {
		t.Errorf("the console takes %d bytes; want at most %d", size, h.ConsoleBytes)
	}
}

// testProcessDies: so does a process that is killed from outside.
func (s *suite) testProcessDies(t *testing.T) {
	i := s.restore(t, s.host(t), s.config, s.state, vmm.Memory{File: s.memory})
	if err := syscall.Kill(i.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-i.Done()
	if err := i.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err is %v; want the signal", err)
	}
	if err := i.Resume(s.context(t)); err == nil {
		t.Error("Resume of a dead machine succeeds")
	}
	i.end(t)
	checkLogsAlone(t, i.host)
}

func (s *suite) testBootErrors(t *testing.T) {
	notKernel := filepath.Join(t.TempDir(), "not-a-kernel")
	if err := os.WriteFile(notKernel, []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*vmm.BootSpec)
		want   string
	}{
		{"no kernel", func(b *vmm.BootSpec) { b.Kernel = "/nonexistent/vmlinuz" }, "/nonexistent/vmlinuz"},
		{"not a kernel", func(b *vmm.BootSpec) { b.Kernel = notKernel }, "kernel"},
		{"no initramfs", func(b *vmm.BootSpec) { b.Initramfs = "/nonexistent/initramfs" }, "/nonexistent/initramfs"},
		{"no disk", func(b *vmm.BootSpec) { b.RootDisk = "/nonexistent/disk" }, "/nonexistent/disk"},
		{"no namespace", func(b *vmm.BootSpec) { b.NetNS = "/nonexistent/netns" }, "/nonexistent/netns"},
		{"no tap", func(b *vmm.BootSpec) { b.Tap = "a-name-that-is-too-long" }, "a-name-that-is-too-long"},
		{"no memory", func(b *vmm.BootSpec) { b.MemoryMiB = 0 }, "memory"},
		{"no vCPUs", func(b *vmm.BootSpec) { b.VCPUs = 0 }, "vCPU"},
		{"no id", func(b *vmm.BootSpec) { b.ID = "" }, "id"},
		{"bad id", func(b *vmm.BootSpec) { b.ID = "../a,b" }, "../a,b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := s.host(t)
			b := vmm.BootSpec{Config: s.config, Host: h, MemoryFile: filepath.Join(h.Dir, "memory")}
			test.change(&b)
			m, err := s.vmm.Boot(s.context(t), b)
			if err == nil {
				_ = m.Kill()
				t.Fatal("Boot succeeds")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %q; want it to name %s", err, test.want)
			}
			if _, err := os.Stat(b.MemoryFile); !os.IsNotExist(err) {
				t.Errorf("the memory file is left: %v", err)
			}
			checkLogsAlone(t, h)
		})
	}
}

// checkLogsAlone makes sure that a start that failed, or a machine that has ended,
// has left nothing in its directory but its logs.
func checkLogsAlone(t testing.TB, h vmm.Host) {
	t.Helper()
	left, err := os.ReadDir(h.Dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range left {
		if !strings.HasPrefix(e.Name(), "console.log") && !strings.HasPrefix(e.Name(), "stderr.log") {
			t.Errorf("%s is left in the machine's directory", e.Name())
		}
	}
}

func (s *suite) testRestoreErrors(t *testing.T) {
	dir := t.TempDir()
	state, err := os.ReadFile(s.state)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	corrupt := append([]byte("not device state"), state[16:]...)
	short := put("short-memory", make([]byte, 1<<20))
	for _, test := range []struct {
		name   string
		change func(*vmm.RestoreSpec)
		want   string
		state  bool // the snapshot's is to blame
	}{
		{"no state", func(r *vmm.RestoreSpec) { r.State = "/nonexistent/state" }, "/nonexistent/state", false},
		{"empty state", func(r *vmm.RestoreSpec) { r.State = put("empty", nil) }, "state", true},
		{"corrupt state", func(r *vmm.RestoreSpec) { r.State = put("corrupt", corrupt) }, "state", true},
		{"truncated state", func(r *vmm.RestoreSpec) { r.State = put("truncated", state[:len(state)/2]) }, "state", true},
		{"no memory", func(r *vmm.RestoreSpec) { r.Memory.File = "/nonexistent/memory" }, "/nonexistent/memory", false},
		{"truncated memory", func(r *vmm.RestoreSpec) { r.Memory.File = short }, "memory", false},
		{"other memory size", func(r *vmm.RestoreSpec) { r.MemoryMiB *= 2 }, "memory", false},
		{"no disk", func(r *vmm.RestoreSpec) { r.RootDisk = "/nonexistent/disk" }, "/nonexistent/disk", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := s.host(t)
			r := vmm.RestoreSpec{Config: s.config, Host: h, State: s.state, Memory: vmm.Memory{File: s.memory}}
			test.change(&r)
			m, err := s.vmm.Restore(s.context(t), r)
			if err == nil {
				_ = m.Kill()
				t.Fatal("Restore succeeds")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %q; want it to name %s", err, test.want)
			}
			if got := errors.Is(err, vmm.ErrState); got != test.state {
				t.Errorf("%q: blamed on the state: %v, want %v", err, got, test.state)
			}
		})
	}
}

// testAttachErrors: what goes wrong around the hand-over leaves nothing.
func (s *suite) testAttachErrors(t *testing.T) {
	refused := errors.New("refused by the test")
	r := vmm.RestoreSpec{Config: s.config, Host: s.host(t), State: s.state}
	r.Memory.Attach = func(_ context.Context, g userfaultfd.Guest) error {
		if g.Gone != nil {
			g.Gone.Close()
		}
		return errors.Join(refused, g.FD.Close())
	}
	if _, err := s.vmm.Restore(s.context(t), r); !errors.Is(err, refused) {
		t.Errorf("Restore: %v; want Attach's own error", err)
	}
	// The other size is found when device state is loaded.
	p := servePages(t, s.memory)
	t.Cleanup(p.close)
	r.Host, r.MemoryMiB, r.Memory.Attach = s.host(t), 2*s.config.MemoryMiB, p.attach
	if m, err := s.vmm.Restore(s.context(t), r); err == nil {
		_ = m.Kill()
		t.Error("Restore with another memory size succeeds")
	}
}

func (s *suite) testSnapshotErrors(t *testing.T) {
	ctx := s.context(t)
	dir := t.TempDir()
	state, memory := filepath.Join(dir, "state"), filepath.Join(dir, "memory")
	r := s.restore(t, s.host(t), s.config, s.state, vmm.Memory{File: s.memory})
	if err := r.Snapshot(ctx, state, memory); !errors.Is(err, vmm.ErrNotBooted) {
		t.Errorf("Snapshot of a restored machine: %v; want ErrNotBooted", err)
	}
	i := s.boot(t, s.host(t), s.config)
	if err := i.Snapshot(ctx, state, memory); err == nil {
		t.Error("Snapshot of a running machine succeeds")
	}
	if err := i.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := i.Snapshot(ctx, "/nonexistent/state", memory); err == nil {
		t.Error("Snapshot to a directory that is not there succeeds")
	}
	if err := i.Snapshot(ctx, state, memory); err != nil {
		t.Errorf("Snapshot after one that did nothing: %v", err)
	}
	if err := i.Snapshot(ctx, state+"2", memory+"2"); err == nil {
		t.Error("a second Snapshot succeeds")
	}
	if err := i.Resume(ctx); err == nil {
		t.Error("Resume after Snapshot succeeds: it would change the snapshot's memory")
	}
	i.end(t)
	if _, err := os.Stat(memory); err != nil {
		t.Errorf("Kill removed the snapshot's memory: %v", err)
	}
}

// testSnapshotDiskFull: the failed snapshot leaves no file, and the error says why.
func (s *suite) testSnapshotDiskFull(t *testing.T) {
	ctx := s.context(t)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	i := s.boot(t, s.host(t), s.config)
	if err := i.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(full, "state")
	err := i.Snapshot(ctx, state, filepath.Join(i.host.Dir, "taken"))
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "no space left") {
		t.Errorf("Snapshot to a full disk: %v; want that there is no space", err)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("half of the state is left: %v", err)
	}
	i.end(t)
	if _, err := os.Stat(i.memory); !os.IsNotExist(err) {
		t.Errorf("the memory file is left: %v", err)
	}
}

// moments calls try with ever longer delays, from none at all until it says that
// all was over by then: so that there is something to be cut short in every part,
// however long they take on this host.
func (s *suite) moments(t testing.TB, factor float64, try func(d time.Duration) (over bool)) {
	t.Helper()
	longest := testenv.Limit(t, limit)
	n, d := 0, time.Duration(0)
	for ; !try(d); n++ {
		if t.Failed() {
			t.Fatalf("after %v", d)
		}
		if d > longest {
			t.Fatalf("it is not over after %v", d)
		}
		d = max(500*time.Microsecond, time.Duration(float64(d)*factor))
	}
	if n < 3 {
		t.Errorf("it was over after %v: too soon to be cut short anywhere", d)
	}
	t.Logf("cut short at %d moments; over after %v", n, d)
}

func (s *suite) testCancelBoot(t *testing.T) {
	s.moments(t, 1.4, func(d time.Duration) bool {
		h := s.host(t)
		memory := filepath.Join(h.Dir, "memory")
		ctx, cancel := context.WithTimeout(context.Background(), d)
		m, err := s.vmm.Boot(ctx, vmm.BootSpec{Config: s.config, Host: h, MemoryFile: memory})
		cancel()
		if err == nil {
			if err := m.Kill(); err != nil {
				t.Error(err)
			}
		}
		s.checkNothingLeft(t, d, err)
		if _, err := os.Stat(memory); !os.IsNotExist(err) {
			t.Errorf("cancelled after %v: the memory file is left: %v", d, err)
		}
		return err == nil
	})
}

func (s *suite) testCancelRestore(t *testing.T) {
	for name, attached := range map[string]bool{"File": false, "Attach": true} {
		t.Run(name, func(t *testing.T) {
			s.moments(t, 1.4, func(d time.Duration) bool {
				ctx, cancel := context.WithTimeout(context.Background(), d)
				memory := vmm.Memory{File: s.memory}
				p := servePages(t, s.memory)
				if attached {
					memory = vmm.Memory{Attach: p.attach}
				}
				m, err := s.vmm.Restore(ctx, vmm.RestoreSpec{Config: s.config, Host: s.host(t), State: s.state, Memory: memory})
				cancel()
				if err == nil {
					if err := m.Kill(); err != nil {
						t.Error(err)
					}
				}
				p.close()
				s.checkNothingLeft(t, d, err)
				return err == nil
			})
		})
	}
}

func (s *suite) checkNothingLeft(t testing.TB, d time.Duration, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled after %v: %v; want the context's error", d, err)
	}
	if left := marked(t); len(left) > 0 {
		t.Errorf("cancelled after %v: processes are left: %v", d, left)
	}
}

// testKillDuringCalls: Kill at any moment of another call, which then returns.
func (s *suite) testKillDuringCalls(t *testing.T) {
	s.moments(t, 1.5, func(d time.Duration) bool {
		ctx := s.context(t)
		h := s.host(t)
		i := s.boot(t, h, s.config)
		over := make(chan struct{})
		go func() {
			defer close(over)
			for range 3 {
				_ = i.Pause(ctx)
				_ = i.Resume(ctx)
			}
			if i.Pause(ctx) == nil {
				_ = i.Snapshot(ctx, filepath.Join(h.Dir, "state"), filepath.Join(h.Dir, "taken"))
			}
		}()
		before := false
		select {
		case <-over:
			before = true
		case <-time.After(d):
		}
		if err := i.Kill(); err != nil {
			t.Errorf("Kill after %v: %v", d, err)
		}
		<-over
		if err := i.Err(); err != nil {
			t.Errorf("Err after Kill is %v; want nil", err)
		}
		if left := marked(t); len(left) > 0 {
			t.Errorf("killed after %v: processes are left: %v", d, left)
		}
		return before
	})
}
