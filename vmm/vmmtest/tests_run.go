package vmmtest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
)

func (s *suite) testBoot(t *testing.T) {
	ctx := s.context(t)
	info, err := s.vmm.Info(ctx)
	if err != nil || info.Name == "" || info.Version == "" || info.Accel == "" || info.Machine == "" {
		t.Errorf("Info: %+v, %v; want every field", info, err)
	}
	i := s.boot(t, s.host(t), s.config)
	i.await(ctx, t, 3)
	if want := `disk "a skep disk" read-only`; !strings.Contains(i.console(t), want) {
		t.Errorf("the console does not say %s:\n%s", want, i.console(t))
	}
	if tm := i.Timings(); tm.Spawn <= 0 || tm.Load <= 0 {
		t.Errorf("timings %+v; want both parts", tm)
	}
	if st, err := os.Stat(i.memory); err != nil || st.Size() != int64(s.config.MemoryMiB)<<20 {
		t.Errorf("memory file: %v, %v; want %d MiB", st, err, s.config.MemoryMiB)
	}
	checkConfined(t, i.PID())
	if found := marked(t); len(found) != 1 {
		t.Errorf("processes with the mark in their environment: %q; want one", found)
	}
	i.end(t)
	if _, err := os.Stat(i.memory); !os.IsNotExist(err) {
		t.Errorf("the memory file is still there after Kill: %v", err)
	}
	if err := i.Err(); err != nil {
		t.Errorf("Err after Kill is %v; want nil", err)
	}
	i.end(t) // idempotent
}

// checkConfined makes sure that no thread of the process has a right left.
func checkConfined(t testing.TB, pid int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v, %v", pid, files, err)
	}
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err != nil {
			continue // a worker thread that has ended
		}
		for _, want := range []string{
			fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", uid),
			"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
		} {
			if !bytes.Contains(status, []byte(want)) {
				t.Errorf("%s: no line %q in:\n%s", file, want, status)
			}
		}
	}
	for _, name := range []string{"etc", "usr", "proc", "sys", "root", "tmp", "var"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root/%s", pid, name)); !os.IsNotExist(err) {
			t.Errorf("its root directory is not its own: /%s in it: %v", name, err)
		}
	}
	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)); err != nil || !strings.Contains(string(limits), "Max core file size        0 ") {
		t.Errorf("core dumps are possible: %s, %v", limits, err)
	}
}

func (s *suite) testNetwork(t *testing.T) {
	ctx := s.context(t)
	h := s.host(t)
	h.NetNS, h.Tap = newNetNS(t), tapName
	i := s.boot(t, h, s.config)
	i.await(ctx, t, 1)
	if got := ask(ctx, t, h.NetNS); !strings.HasPrefix(got, "tick ") {
		t.Errorf("the guest answers %q", got)
	}
	mine, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", i.PID())); err != nil || its == mine {
		t.Errorf("the process is in the namespace %s, %v; want another than ours", its, err)
	}
	dir := t.TempDir()
	state, memory := filepath.Join(dir, "state"), filepath.Join(dir, "memory")
	if err := i.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := i.Snapshot(ctx, state, memory); err != nil {
		t.Fatal(err)
	}
	i.end(t)
	// The clone has another namespace, a tap of the same name and the same
	// address. It is asked before it runs: the packet waits for it.
	h = s.host(t)
	h.NetNS, h.Tap = newNetNS(t), tapName
	r := s.restore(t, h, s.config, state, vmm.Memory{File: memory})
	heard := listen(t, h.NetNS)
	answer := make(chan string, 1)
	go func() { answer <- ask(ctx, t, h.NetNS) }()
	if err := r.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; !strings.HasPrefix(got, "tick ") {
		t.Errorf("the clone answers %q", got)
	}
	// Nobody has asked where it is, and to say it takes time that its answer needs.
	if n := heard.announcements(t); n > 0 {
		t.Errorf("the clone has announced itself %d times", n)
	}
}

func (s *suite) testPauseResume(t *testing.T) {
	ctx := s.context(t)
	i := s.boot(t, s.host(t), s.config)
	i.await(ctx, t, 3)
	for range 2 { // the second is a no-op
		if err := i.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(50 * time.Millisecond) // what was printed before is on its way to the file
	before := len(i.counts(t))
	time.Sleep(300 * time.Millisecond)
	if after := len(i.counts(t)); after != before {
		t.Errorf("a paused guest counted from %d to %d", before, after)
	}
	for range 2 {
		if err := i.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	i.await(ctx, t, before+3)
}

func (s *suite) testRestoreFile(t *testing.T) {
	ctx := s.context(t)
	before := digest(t, s.memory)
	i := s.restore(t, s.host(t), s.config, s.state, vmm.Memory{File: s.memory})
	time.Sleep(100 * time.Millisecond)
	if c := i.counts(t); len(c) != 0 {
		t.Errorf("a restored machine runs before Resume: %v", c)
	}
	if tm := i.Timings(); tm.Spawn <= 0 || tm.Load <= 0 {
		t.Errorf("timings %+v; want both parts", tm)
	}
	checkConfined(t, i.PID())
	checkUnadvised(t, i.PID())
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	s.checkGoesOn(t, i.await(ctx, t, 10))
	i.end(t)
	if digest(t, s.memory) != before {
		t.Error("a clone changed the snapshot's memory file")
	}
}

// checkGoesOn: the counts of a clone follow those of the snapshot, one by one.
func (s *suite) checkGoesOn(t testing.TB, counts []int) {
	t.Helper()
	// The snapshot may have been taken in the middle of a line.
	if first := counts[0]; first != s.last+1 && first != s.last+2 {
		t.Errorf("the clone counts from %d; want to go on after %d", first, s.last)
	}
	for n := range counts[1:] {
		if counts[n+1] != counts[n]+1 {
			t.Errorf("the clone counts %v", counts)
			return
		}
	}
}

func digest(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

func (s *suite) testRestoreAttach(t *testing.T) {
	i, p := s.restoreAttached(t, s.config, s.state, s.memory)
	ctx := s.context(t)
	s.checkGoesOn(t, i.await(ctx, t, 10))
	i.end(t)
	p.close()
	t.Logf("%d faults served", p.faults.Load())
}

// restoreAttached restores a machine whose faults are served one by one, and
// resumes it.
func (s *suite) restoreAttached(t testing.TB, c vmm.Config, state, memory string) (*instance, *pages) {
	t.Helper()
	p := servePages(t, memory)
	t.Cleanup(p.close) // after the machine's end
	i := s.restore(t, s.host(t), c, state, vmm.Memory{Attach: p.attach})
	if p.present != 0 {
		t.Errorf("%d pages were there when memory was handed over; want none", p.present)
	}
	var size uint64
	for _, r := range p.guest.Regions {
		if r.Offset != size {
			t.Errorf("region %+v; want it at offset %#x", r, size)
		}
		size += r.Size
	}
	if want := uint64(c.MemoryMiB) << 20; size != want || p.guest.PID != i.PID() {
		t.Errorf("%d bytes of process %d were handed over; want %d of %d", size, p.guest.PID, want, i.PID())
	}
	if err := i.Resume(s.context(t)); err != nil {
		t.Fatal(err)
	}
	return i, p
}

// testRestoreLarge: the guest's memory lies on both sides of 4 GiB, with a hole
// below, and the snapshot's file has none.
func (s *suite) testRestoreLarge(t *testing.T) {
	c := s.config
	c.MemoryMiB, c.VCPUs = 5<<10, 2
	state, memory, last := s.snapshot(t, c)
	large := &suite{vmm: s.vmm, config: c, last: last}
	ctx := s.context(t)
	i, _ := large.restoreAttached(t, c, state, memory)
	large.checkGoesOn(t, i.await(ctx, t, 5))
	f := s.restore(t, s.host(t), c, state, vmm.Memory{File: memory})
	if err := f.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	large.checkGoesOn(t, f.await(ctx, t, 5))
}

// testClones: two at once, of one snapshot, by both ways of memory.
func (s *suite) testClones(t *testing.T) {
	ctx := s.context(t)
	a := s.restore(t, s.host(t), s.config, s.state, vmm.Memory{File: s.memory})
	b := s.restore(t, s.host(t), s.config, s.state, vmm.Memory{File: s.memory})
	for _, i := range []*instance{a, b} {
		if err := i.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	c, _ := s.restoreAttached(t, s.config, s.state, s.memory)
	d, _ := s.restoreAttached(t, s.config, s.state, s.memory)
	for _, i := range []*instance{a, b, c, d} {
		s.checkGoesOn(t, i.await(ctx, t, 20))
	}
}

// testManyAtOnce starts more machines at a time than the host has processors.
func (s *suite) testManyAtOnce(t *testing.T) {
	const many = 12
	var wg sync.WaitGroup
	for n := range many {
		h, p := s.host(t), servePages(t, s.memory)
		h.ID = fmt.Sprintf("test-%d", n)
		wg.Go(func() {
			defer p.close()
			memory := vmm.Memory{File: s.memory}
			if n%2 == 0 {
				memory = vmm.Memory{Attach: p.attach}
			}
			m, err := s.vmm.Restore(s.context(t), vmm.RestoreSpec{Config: s.config, Host: h, State: s.state, Memory: memory})
			if err != nil {
				t.Error(err)
				return
			}
			i := &instance{Machine: m, host: h}
			defer i.end(t)
			if err := i.Resume(s.context(t)); err != nil {
				t.Error(err)
				return
			}
			for len(i.counts(t)) < 10 && i.Err() == nil && !t.Failed() {
				time.Sleep(5 * time.Millisecond)
			}
			if err := i.Err(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

var randomLine = regexp.MustCompile(`(?m)^random ([0-9a-f-]{36})\r?$`)

// testGeneration: clones of a guest whose kernel has a driver for the generation
// id have random numbers of their own, before anybody has told them anything. The
// first line may be from before the guest has seen the new id.
func (s *suite) testGeneration(t *testing.T) {
	if !s.config.Generation {
		t.Skip("the guest kernel has no driver for a VM's generation id: import one that has, such as Debian's linux-image-amd64, and name its store in " + testenv.KernelsEnv)
	}
	c := s.config
	c.Cmdline += " vmmtest=random"
	state, memory, _ := s.snapshot(t, c)
	seen := map[string]int{}
	for n := range 3 {
		var m vmm.Memory
		p := servePages(t, memory)
		if n == 2 {
			m.Attach = p.attach
		} else {
			m.File = memory
		}
		i := s.restore(t, s.host(t), c, state, m)
		ctx := s.context(t)
		if err := i.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		i.await(ctx, t, 8)
		i.end(t)
		p.close()
		lines := randomLine.FindAllStringSubmatch(i.console(t), -1)
		for k, line := range lines {
			if before, ok := seen[line[1]]; ok && k > 2 {
				t.Errorf("clone %d has the random number %s of clone %d, as its number %d", n, line[1], before, k)
			}
			seen[line[1]] = n
		}
		t.Logf("clone %d: %d numbers", n, len(lines))
	}
}

// checkUnadvised makes sure that no memory of the process is advised to be of huge
// pages: that makes the kernel read megabytes around each fault on a mapped snapshot.
func checkUnadvised(t *testing.T, pid int) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		return // where it is not kept from it
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && slices.Contains(strings.Fields(flags), "hg") {
			t.Errorf("memory is advised to be of huge pages: %s", flags)
		}
	}
}
