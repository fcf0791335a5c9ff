package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/vmm"
)

// Only state and memory are the snapshot's: whatever else fails a restore, as
// often as it likes, the snapshot stays in use and is not read from end to end.
func TestSnapshotIsBlamedOnlyForWhatIsIts(t *testing.T) {
	state := fmt.Errorf("restoring: %w", vmm.ErrState)
	for name, tc := range map[string]struct {
		fail  func(*world, *Node)
		blame bool
	}{
		"device state": {func(w *world, _ *Node) { w.restoreErr = state }, true},
		"memory":       {func(w *world, _ *Node) { w.memoryErr = fmt.Errorf("a fault: %w", memory.ErrRead) }, true},
		"vmm":          {func(w *world, _ *Node) { w.restoreErr = errors.New("qemu ended: signal: killed") }, false},
		"userfaultfd":  {func(w *world, _ *Node) { w.memoryErr = errors.New("no such process") }, false},
		"slot":         {func(w *world, _ *Node) { w.slotErr = errors.New("no more taps") }, false},
		"directory": {func(w *world, n *Node) {
			if err := errors.Join(os.Remove(n.cfg.RunDir), os.WriteFile(n.cfg.RunDir, nil, 0o600)); err != nil {
				panic(err)
			}
		}, false},
		"time": {func(w *world, _ *Node) { w.restoreTime = 1 << 60 }, false},
		"hook": {func(w *world, _ *Node) { w.cloneErr = errors.New("the clone hook answered 500") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, func(c *Config) { c.DefaultPolicy = "reap" })
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				stamp := filepath.Join(w.dir, "snapshots", snapshotIDs(t, n)[0], "verified.json")
				w.set(func() { tc.fail(w, n) })
				for range 3 {
					if _, err := n.Acquire(t.Context(), "hello", AcquireOptions{Start: api.StartRestore}); err == nil {
						t.Fatal("it is restored all the same")
					}
				}
				if _, err := os.Stat(stamp); (err != nil) != tc.blame {
					t.Errorf("its stamps: %v; blamed: want %v", err, tc.blame)
				}
				s, err := n.Snapshots(t.Context(), "hello")
				if err != nil || len(s) != 1 || s[0].Usable == tc.blame {
					t.Errorf("snapshots %+v, %v", s, err)
				}
				if name == "directory" {
					os.Remove(n.cfg.RunDir)
					os.Mkdir(n.cfg.RunDir, 0o700)
				}
			})
		})
	}
}
