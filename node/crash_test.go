package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// crashDir, in the environment, makes the test binary a daemon that deploys,
// deploys anew and removes until it is killed.
const crashDir = "SKEP_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if os.Getenv(orphanRoot) != "" {
		fmt.Fprintln(os.Stderr, beOrphan())
		os.Exit(1)
	}
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, churn(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func churn(dir string) error {
	w := newWorldIn(dir)
	w.bootTime, w.restoreTime = 0, 0
	n, err := Open(context.Background(), Config{DataDir: dir, UIDBase: -1, StopGrace: -1}, w.deps())
	if err != nil {
		return err
	}
	fmt.Println("open")
	for i := 0; ; i++ {
		fn := api.Function{Name: fmt.Sprint("f", i%3), Image: "x", MemoryMiB: 64, Env: map[string]string{"I": fmt.Sprint(i)}}
		names := n.FunctionNames()
		switch {
		case i%7 == 6 && len(names) > 0:
			err = n.Remove(context.Background(), names[0])
		case i%7 == 5 && len(names) > 0:
			_, err = n.Set(context.Background(), names[0], fmt.Appendf(nil, `{"env":{"J":"%d"},"timeout":"%ds"}`, i, i+1), nil)
		case i%7 == 4 && len(names) > 0:
			_, err = n.Rollback(context.Background(), names[0], 0, nil)
		default:
			_, err = n.Deploy(context.Background(), fn, nil)
		}
		if err != nil && !errors.Is(err, ErrNoRevision) {
			return err
		}
		l, err := n.Acquire(context.Background(), n.FunctionNames()[0], AcquireOptions{})
		if err != nil {
			return err
		}
		l.Release(api.Invocation{Status: 200, Time: time.Now()})
	}
}

func TestKilledAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	r := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = out.Read(make([]byte, 16)) // it is open, or has failed
		time.Sleep(time.Duration(r.IntN(60000)) * time.Microsecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != -1 {
			t.Fatalf("round %d: it ended by itself with status %d", round, code)
		}
		checkAfterCrash(t, dir)
	}
}

// keptFor says whether a snapshot is of the revision before the one in force.
func keptFor(t *testing.T, n *Node, d *deployment, id string) bool {
	prev, err := n.before(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	m, err := n.snaps.Manifest(id)
	return err == nil && prev != nil && prev.fits(m)
}

// checkAfterCrash opens the data directory and looks whether every function has
// its snapshot and every snapshot its function.
func checkAfterCrash(t *testing.T, dir string) {
	t.Helper()
	w := newWorldIn(dir)
	w.bootTime, w.restoreTime = 0, 0
	n, err := Open(t.Context(), Config{DataDir: dir, UIDBase: -1, StopGrace: -1}, w.deps())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.check(t)
	}()
	snaps, err := n.Snapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	usable, before := map[string]int{}, map[string]int{}
	for _, s := range snaps {
		if s.Usable {
			usable[s.Function]++
		} else if p := n.pool(s.Function); p == nil || !keptFor(t, n, p.current.Load(), s.ID) {
			t.Errorf("snapshot %s is left: %s", s.ID, s.Problem)
		} else if before[s.Function]++; before[s.Function] > 1 {
			t.Errorf("function %s has more than one snapshot of the revision before", s.Function)
		}
		if err := n.VerifySnapshot(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
	for _, name := range n.FunctionNames() {
		if usable[name] != 1 {
			t.Errorf("function %s has %d snapshots", name, usable[name])
		}
		l, err := n.Acquire(t.Context(), name, AcquireOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if l.Start() != api.StartRestore {
			t.Errorf("function %s starts by %s", name, l.Start())
		}
		l.Release(api.Invocation{})
	}
}
