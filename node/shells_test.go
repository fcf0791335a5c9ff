package node

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// shelling is a world whose VMM can start processes ahead.
type shelling struct {
	*world
	live map[string]*fakeShell // guarded by world.mu
	used int                   // guarded by world.mu
	node *Node

	shellTime time.Duration // guarded by world.mu: what one takes to be made
	shellErr  error         // guarded by world.mu
}

type fakeShell struct {
	w    *shelling
	spec vmm.RestoreSpec
	done chan struct{}
}

func (w *shelling) Shell(ctx context.Context, spec vmm.RestoreSpec) (vmm.Shell, error) {
	if _, err := os.Stat(spec.Dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(spec.State); err != nil {
		return nil, err
	}
	w.mu.Lock()
	took, err := w.shellTime, w.shellErr
	w.mu.Unlock()
	if err := errors.Join(pass(ctx, took), err); err != nil {
		return nil, err
	}
	sh := &fakeShell{w: w, spec: spec, done: make(chan struct{})}
	w.set(func() { w.live[spec.ID] = sh })
	return sh, nil
}

func (s *fakeShell) end() bool {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.live[s.spec.ID] == nil {
		return false
	}
	delete(s.w.live, s.spec.ID)
	return true
}

func (s *fakeShell) Restore(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) (vmm.Machine, error) {
	if !s.end() {
		return nil, errors.New("used up")
	}
	s.w.set(func() { s.w.used++ })
	spec := s.spec
	spec.Memory = vmm.Memory{File: filepath.Join(filepath.Dir(spec.State), "memory"), Attach: attach}
	return s.w.Restore(ctx, spec)
}

func (s *fakeShell) Done() <-chan struct{} { return s.done }
func (s *fakeShell) PID() int              { return 4243 }
func (s *fakeShell) Kill() error           { s.end(); return nil }

func (w *shelling) count() (live, used int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.live), w.used
}

// withShells runs f with a node that keeps up to max shells; nothing may be left.
func withShells(t *testing.T, max int, f func(t *testing.T, w *shelling, n *Node)) {
	t.Helper()
	w := &shelling{world: newWorld(t), live: map[string]*fakeShell{}}
	synctest.Test(t, func(t *testing.T) {
		deps := w.deps()
		deps.VMM = w
		n, err := Open(t.Context(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1, Shells: max, DefaultPolicy: "reap"}, deps)
		if err != nil {
			t.Fatal(err)
		}
		f(t, w, n)
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d shells are left", live)
		}
		w.check(t)
	})
}

// cold is one invocation on an instance of its own, restored.
func cold(t *testing.T, n *Node, function, policy string) {
	t.Helper()
	l, err := n.Acquire(t.Context(), function, AcquireOptions{Start: api.StartRestore, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	l.Release(api.Invocation{Status: 200})
	synctest.Wait()
}

func named(name string) api.Function {
	return hello(func(f *api.Function) { f.Name = name })
}

// They are there after a deployment already, and are replaced when they are used.
func TestShellsAreUsedAndReplaced(t *testing.T) {
	withShells(t, 2, func(t *testing.T, w *shelling, n *Node) {
		deploy(t, n, named("hello"))
		synctest.Wait()
		for i, want := range []struct {
			policy     string
			live, used int
		}{{"", 1, 0}, {"reap", 1, 1}, {"reap", 1, 2}, {"reap", 1, 3}, {"mmap", 1, 3}, {"reap", 1, 4}} {
			if want.policy != "" {
				cold(t, n, "hello", want.policy)
			}
			if live, used := w.count(); live != want.live || used != want.used {
				t.Errorf("after cold start %d under %s: %d shells, %d were used; want %d and %d", i, want.policy, live, used, want.live, want.used)
			}
		}
		deploy(t, n, hello(func(f *api.Function) { f.Name, f.MemoryPolicy = "mapped", "mmap" }))
		synctest.Wait()
		if live, _ := w.count(); live != 1 {
			t.Errorf("%d shells: one for a function whose starts cannot use it", live)
		}
	})
}

// Changes of a function leave it with one that fits.
func TestShellsFollowTheFunction(t *testing.T) {
	withShells(t, 4, func(t *testing.T, w *shelling, n *Node) {
		deploy(t, n, named("hello"))
		for what, change := range map[string]func() error{
			"set": func() error {
				_, err := n.Set(t.Context(), "hello", []byte(`{"timeout":"5s"}`), nil)
				return err
			},
			"snapshot": func() error { _, err := n.CreateSnapshot(t.Context(), "hello", nil); return err },
			"set guest": func() error {
				_, err := n.Set(t.Context(), "hello", []byte(`{"memory_mib":64}`), nil)
				return err
			},
		} {
			must(t, change())
			synctest.Wait()
			_, before := w.count()
			cold(t, n, "hello", "reap")
			if live, used := w.count(); live != 1 || used != before+1 {
				t.Errorf("after %s: %d wait, %d were used", what, live, used-before)
			}
		}
	})
}

// The functions that were used last have them, over the daemon's end, too.
func TestShellsAreBounded(t *testing.T) {
	withShells(t, 2, func(t *testing.T, w *shelling, n *Node) {
		for _, name := range []string{"a", "b", "c"} {
			deploy(t, n, named(name))
			time.Sleep(time.Second)
		}
		for i, name := range []string{"c", "b", "a"} {
			if live, _ := w.count(); live != 2 {
				t.Errorf("%d shells, want 2", live)
			}
			_, before := w.count()
			cold(t, n, name, "reap")
			time.Sleep(time.Second)
			if _, used := w.count(); (used > before) != (i < 2) {
				t.Errorf("%s: %d shells used, %d before", name, used, before)
			}
		}
		l := acquireOf(t, n, "c")
		l.Release(api.Invocation{Time: time.Now().Add(time.Hour), Status: 200})
		must(t, n.Close(context.Background()))
		deps := w.deps()
		deps.VMM = w
		again, err := Open(t.Context(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1, Shells: 1, DefaultPolicy: "reap"}, deps)
		must(t, err)
		synctest.Wait()
		if again.shells.of["c"] == nil || len(w.live) != 1 {
			t.Errorf("after the daemon's start: %v, %d shells", again.shells.of, len(w.live))
		}
		must(t, again.Close(context.Background()))
	})
}

func acquireOf(t *testing.T, n *Node, function string) Lease {
	t.Helper()
	l, err := n.Acquire(t.Context(), function, AcquireOptions{Start: api.StartRestore})
	must(t, err)
	return l
}

// burst is so many invocations at once, each on an instance of its own.
func burst(t *testing.T, n *Node, function string, many int) {
	t.Helper()
	leases := make([]Lease, many)
	var wg sync.WaitGroup
	for i := range leases {
		wg.Go(func() { leases[i] = acquireOf(t, n, function) })
	}
	wg.Wait()
	for _, l := range leases {
		l.Release(api.Invocation{Status: 200})
	}
	synctest.Wait()
}

// A burst finds as many as the last one wanted; what is wanted no longer goes, and another
// function's first does not go for it.
func TestShellsForBursts(t *testing.T) {
	withShells(t, 6, func(t *testing.T, w *shelling, n *Node) {
		deploy(t, n, named("rare"))
		deploy(t, n, hello(func(f *api.Function) { f.Name, f.MaxInstances, f.KeepAlive = "hot", 16, api.Duration(time.Millisecond) }))
		synctest.Wait()
		burst(t, n, "hot", 4)
		if live, used := w.count(); live != 5 || used != 1 {
			t.Errorf("after a burst: %d wait, %d were used; want 4 and 1 for the other, and 1", live, used)
		}
		burst(t, n, "hot", 4)
		if live, used := w.count(); live != 5 || used != 5 {
			t.Errorf("after another: %d wait, %d were used", live, used)
		}
		burst(t, n, "hot", 16)
		if live, _ := w.count(); live != 6 || len(n.shells.of["rare"].list) != 1 {
			t.Errorf("after a larger one: %d wait, %d of the other's; want 6 and 1", live, len(n.shells.of["rare"].list))
		}
		deploy(t, n, named("new"))
		synctest.Wait()
		if live, _ := w.count(); live != 6 || len(n.shells.of["new"].list) != 1 || len(n.shells.of["rare"].list) != 1 {
			t.Errorf("a new function's first: %d wait, of it %d", live, len(n.shells.of["new"].list))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if live, _ := w.count(); live != 3 {
			t.Errorf("after an hour: %d wait, want one for each function", live)
		}
	})
}

// A start that finds one being made waits for that, and does without when it fails; one that
// has not been begun is not waited for.
func TestShellsBeingMade(t *testing.T) {
	withShells(t, 4, func(t *testing.T, w *shelling, n *Node) {
		w.set(func() { w.shellTime = time.Second })
		deploy(t, n, named("hello"))
		synctest.Wait()
		time.Sleep(700 * time.Millisecond)
		began := time.Now()
		l := acquireOf(t, n, "hello")
		took := time.Since(began)
		if _, used := w.count(); took != 300*time.Millisecond+w.restoreTime || used != 1 {
			t.Errorf("it took %v, %d were used", took, used)
		}
		if l.Phases().Slot != 300*time.Millisecond {
			t.Errorf("phases %+v", l.Phases())
		}
		w.set(func() { w.shellErr = errors.New("no memory") })
		l.Release(api.Invocation{Status: 200})
		synctest.Wait()
		cold(t, n, "hello", "reap")
		if live, used := w.count(); live != 0 || used != 1 {
			t.Errorf("after one that could not be made: %d wait, %d were used", live, used)
		}
	})
}

// Memory that instances may need is left to them.
func TestShellsLeaveMemory(t *testing.T) {
	w := &shelling{world: newWorld(t), live: map[string]*fakeShell{}}
	w.info.Overhead = vmm.Overhead{UsedMiB: 10, MostMiB: 20}
	synctest.Test(t, func(t *testing.T) {
		deps := w.deps()
		deps.VMM = w
		n, err := Open(t.Context(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1, Shells: 8, DefaultPolicy: "reap", MemoryMiB: 300}, deps)
		must(t, err)
		deploy(t, n, hello(func(f *api.Function) { f.Name, f.MemoryMiB = "hello", 256 }))
		synctest.Wait()
		l := acquireOf(t, n, "hello") // uses one; 34 MiB are left, of which its VMM has 10
		for range 9 {
			n.shells.want(n.pool("hello").current.Load(), snapshotIDs(t, n)[0])
			n.shells.of["hello"].demand.Missed(time.Now())
		}
		synctest.Wait()
		if live, used := w.count(); live != 3 || used != 1 {
			t.Errorf("%d wait, %d were used; want 3 and 1", live, used)
		}
		l.Release(api.Invocation{Status: 200})
		must(t, n.Close(context.Background()))
		w.check(t)
	})
}

// One that no longer fits, that has died, or whose function is gone, is not used
// and not left.
func TestShellsThatDoNotFitAreEnded(t *testing.T) {
	withShells(t, 4, func(t *testing.T, w *shelling, n *Node) {
		deploy(t, n, named("hello"))
		synctest.Wait()
		old := n.shells.of["hello"].list[0].id
		deploy(t, n, hello(func(f *api.Function) { f.Name = "hello"; f.MemoryMiB = 64 }))
		synctest.Wait()
		if live, _ := w.count(); live != 1 || w.live[old] != nil {
			t.Errorf("%d shells, that of the deployment that was replaced: %v", live, w.live[old] != nil)
		}
		w.set(func() {
			for _, sh := range w.live {
				close(sh.done)
			}
		})
		synctest.Wait()
		cold(t, n, "hello", "reap")
		if live, used := w.count(); live < 1 || used != 0 {
			t.Errorf("after one died: %d shells, %d used", live, used)
		}
		if err := n.Remove(t.Context(), "hello"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d shells of a function that was removed", live)
		}
	})
}

// Memory of a process that loads device state ahead is served from the snapshot that it is made for,
// until it is handed over or the process ends; where it cannot be there is no process, and starts do without.
func TestShellsLoadAhead(t *testing.T) {
	w := &shelling{world: newWorld(t), live: map[string]*fakeShell{}}
	table := memory.New(memory.Options{})
	defer table.Close()
	var broken error
	served := 0
	synctest.Test(t, func(t *testing.T) {
		deps := w.deps()
		deps.VMM = w
		deps.Ahead = func(ctx context.Context, src memory.Source) (*memory.Ahead, error) {
			if src.SnapshotID != snapshotIDs(t, w.node)[0] || src.Size != 64<<20 {
				t.Errorf("memory of %+v is to be served", src)
			}
			if broken != nil {
				return nil, broken
			}
			served++
			return table.Ahead(ctx, src)
		}
		deps.Wake = func(_ context.Context, c net.Conn) (net.Conn, error) {
			t.Error("a guest is woken whose device state is not loaded")
			return c, nil
		}
		n, err := Open(t.Context(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1, Shells: 1, DefaultPolicy: "reap"}, deps)
		must(t, err)
		w.node = n
		deploy(t, n, named("hello"))
		synctest.Wait()
		for _, sh := range w.live {
			if sh.spec.Memory.Attach == nil {
				t.Error("the process is to load nothing ahead")
			}
		}
		cold(t, n, "hello", "reap")
		if live, used := w.count(); live != 1 || used != 1 || served != 2 {
			t.Errorf("%d processes wait, %d were used, the memory of %d was served; want 1, 1, 2", live, used, served)
		}
		broken = errors.New("no memory")
		cold(t, n, "hello", "reap") // the one that is there
		cold(t, n, "hello", "reap")
		if live, used := w.count(); live != 0 || used != 2 {
			t.Errorf("%d processes wait, %d were used; want none, 2", live, used)
		}
		must(t, n.Close(context.Background()))
		w.check(t)
	})
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); filepath.Base(to) == "memory" {
			t.Errorf("%s is still open", to)
		}
	}
}
