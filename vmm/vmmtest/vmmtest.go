// Package vmmtest is the conformance suite of package vmm: what every backend
// must do, tried with real guests. A backend's own test calls Run. The guest
// is a small init that counts on its console, checks its memory with every
// count, and answers on the network.
package vmmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
)

// limit is for how long one test may wait for a guest. Software emulation on
// a busy machine is slow.
const limit = 3 * time.Minute

// Run runs the suite. It needs root, taps and a guest kernel. A backend names
// what its VMM lacks by nature, and says why; known is "poweroff", the end of a
// machine whose guest powers off.
func Run(t *testing.T, open func(t testing.TB) vmm.VMM, lacks ...string) {
	s := newSuite(t, open)
	s.lacks = lacks
	s.state, s.memory, s.last = s.snapshot(t, s.config)
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Boot", s.testBoot},
		{"Network", s.testNetwork},
		{"PauseResume", s.testPauseResume},
		{"RestoreFile", s.testRestoreFile},
		{"RestoreAttach", s.testRestoreAttach},
		{"RestoreAttachAbove4GiB", s.testRestoreLarge},
		{"Clones", s.testClones},
		{"Generation", s.testGeneration},
		{"ManyAtOnce", s.testManyAtOnce},
		{"Shell", s.testShell},
		{"ShellLoads", s.testShellLoads},
		{"ShellEnds", s.testShellEnds},
		{"GuestEnds", s.testGuestEnds},
		{"ConsoleIsBounded", s.testConsoleIsBounded},
		{"ProcessDies", s.testProcessDies},
		{"BootErrors", s.testBootErrors},
		{"RestoreErrors", s.testRestoreErrors},
		{"AttachErrors", s.testAttachErrors},
		{"SnapshotErrors", s.testSnapshotErrors},
		{"SnapshotDiskFull", s.testSnapshotDiskFull},
		{"CancelBoot", s.testCancelBoot},
		{"CancelRestore", s.testCancelRestore},
		{"KillDuringCalls", s.testKillDuringCalls},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			test.run(t)
		})
	}
}

// suite is a VMM and a snapshot that the tests share.
type suite struct {
	vmm    vmm.VMM
	config vmm.Config
	state  string
	memory string
	last   int // the last count before the snapshot
	lacks  []string
}

func newSuite(t testing.TB, open func(testing.TB) vmm.VMM) *suite {
	t.Helper()
	testenv.Need(t, "root", "uffd", "tap")
	s := &suite{vmm: open(t)}
	k := testenv.Kernel(t)
	disk := filepath.Join(t.TempDir(), "disk, with a comma")
	if err := os.WriteFile(disk, append([]byte("a skep disk"), make([]byte, 1<<20)...), 0o444); err != nil {
		t.Fatal(err)
	}
	s.config = vmm.Config{
		VCPUs: 1, MemoryMiB: 128, Kernel: k.Path, Initramfs: packGuest(t, k), Cmdline: "quiet", RootDisk: disk,
		Generation: generation(t, k),
	}
	return s
}

func (s *suite) context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Limit(t, limit))
	t.Cleanup(cancel)
	return ctx
}

// uid is an unprivileged user that nothing else runs as.
const uid = 61937

// host makes the surroundings of one machine, without a network.
func (s *suite) host(t testing.TB) vmm.Host {
	t.Helper()
	return vmm.Host{
		ID: "test-1", Dir: t.TempDir(), MAC: guest.MAC, UID: uid, GID: uid,
		Env: []string{mark()},
	}
}

// mark is in the environment of every process that this test starts.
func mark() string { return fmt.Sprintf("SKEP_VMMTEST=%d", os.Getpid()) }

// instance is a machine and its surroundings.
type instance struct {
	vmm.Machine
	host   vmm.Host
	memory string
}

func (s *suite) boot(t testing.TB, h vmm.Host, c vmm.Config) *instance {
	t.Helper()
	i := &instance{host: h, memory: filepath.Join(h.Dir, "memory")}
	m, err := s.vmm.Boot(s.context(t), vmm.BootSpec{Config: c, Host: h, MemoryFile: i.memory})
	if err != nil {
		t.Fatal(err)
	}
	i.Machine = m
	t.Cleanup(func() { i.end(t) })
	return i
}

func (s *suite) restore(t testing.TB, h vmm.Host, c vmm.Config, state string, memory vmm.Memory) *instance {
	t.Helper()
	m, err := s.vmm.Restore(s.context(t), vmm.RestoreSpec{Config: c, Host: h, State: state, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{Machine: m, host: h}
	t.Cleanup(func() { i.end(t) })
	return i
}

func (i *instance) end(t testing.TB) {
	t.Helper()
	if err := i.Kill(); err != nil {
		t.Errorf("Kill: %v", err)
	}
}

var (
	goodTick = regexp.MustCompile(`(?m)^tick (\d+) ok\r?$`)
	badTick  = regexp.MustCompile(`(?m)^tick \d+ BAD.*$`)
)

// console is all that the guest printed.
func (i *instance) console(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(i.host.Dir, "console.log"))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// counts returns the numbers that the guest has counted here, after making
// sure that it found its memory intact each time.
func (i *instance) counts(t testing.TB) []int {
	t.Helper()
	text := i.console(t)
	if bad := badTick.FindString(text); bad != "" {
		t.Errorf("the guest's memory is wrong: %s", bad)
	}
	var counts []int
	for _, m := range goodTick.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Error(err)
		}
		counts = append(counts, n)
	}
	return counts
}

// await waits until the guest has counted n times here, and returns the counts.
func (i *instance) await(ctx context.Context, t testing.TB, n int) []int {
	t.Helper()
	for {
		if c := i.counts(t); len(c) >= n {
			return c
		}
		select {
		case <-i.Done():
			t.Fatalf("the machine ended: %v\n%s", i.Err(), i.console(t))
		case <-ctx.Done():
			t.Fatalf("the guest did not count to %d\n%s", n, i.console(t))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// snapshot boots a machine and takes its snapshot into a directory of t's.
func (s *suite) snapshot(t testing.TB, c vmm.Config) (state, memory string, last int) {
	t.Helper()
	ctx := s.context(t)
	dir := t.TempDir()
	i := s.boot(t, s.host(t), c)
	i.await(ctx, t, 5)
	if err := i.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	// On the boot's file system, as the contract wants.
	state, memory = filepath.Join(dir, "state"), filepath.Join(dir, "memory")
	if err := i.Snapshot(ctx, state, memory); err != nil {
		t.Fatal(err)
	}
	i.end(t)
	counts := i.counts(t)
	return state, memory, counts[len(counts)-1]
}
