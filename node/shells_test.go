package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// shelling is a world whose VMM can start processes ahead.
type shelling struct {
	*world
	live map[string]*fakeShell // guarded by world.mu
	used int                   // guarded by world.mu
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
		n, err := Open(t.Context(), Config{DataDir: w.dir, UIDBase: -1, StopGrace: -1, Shells: max}, deps)
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

func TestShellsAreUsedAndReplaced(t *testing.T) {
	withShells(t, 2, func(t *testing.T, w *shelling, n *Node) {
		deploy(t, n, named("hello"))
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d shells before the first cold start", live)
		}
		for i, want := range []struct {
			policy     string
			live, used int
		}{{"reap", 1, 0}, {"reap", 1, 1}, {"reap", 1, 2}, {"mmap", 1, 2}, {"reap", 1, 3}} {
			cold(t, n, "hello", want.policy)
			if live, used := w.count(); live != want.live || used != want.used {
				t.Errorf("after cold start %d under %s: %d shells, %d were used; want %d and %d", i, want.policy, live, used, want.live, want.used)
			}
		}
	})
}

// The functions that started last have them.
func TestShellsAreBounded(t *testing.T) {
	withShells(t, 2, func(t *testing.T, w *shelling, n *Node) {
		for _, name := range []string{"a", "b", "c"} {
			deploy(t, n, named(name))
			cold(t, n, name, "reap")
			time.Sleep(time.Second)
		}
		if live, _ := w.count(); live != 2 {
			t.Errorf("%d shells, want 2", live)
		}
		for i, name := range []string{"c", "b", "a"} {
			_, before := w.count()
			cold(t, n, name, "reap")
			time.Sleep(time.Second)
			if _, used := w.count(); (used > before) != (i < 2) {
				t.Errorf("%s: %d shells used, %d before", name, used, before)
			}
		}
	})
}

// One that no longer fits, that has died, or whose function is gone, is not used
// and not left.
func TestShellsThatDoNotFitAreEnded(t *testing.T) {
	withShells(t, 4, func(t *testing.T, w *shelling, n *Node) {
		deploy(t, n, named("hello"))
		cold(t, n, "hello", "reap")
		deploy(t, n, hello(func(f *api.Function) { f.Name = "hello"; f.MemoryMiB = 64 }))
		synctest.Wait()
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d shells of the deployment that was replaced", live)
		}
		cold(t, n, "hello", "reap")
		w.set(func() {
			for _, sh := range w.live {
				close(sh.done)
			}
		})
		synctest.Wait()
		cold(t, n, "hello", "reap")
		if live, used := w.count(); live != 1 || used != 0 {
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
