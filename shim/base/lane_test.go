package base

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/filelock"
)

// However many want a lane, no more than there are have one, and all get one.
func TestLanes(t *testing.T) {
	h := newHost(t)
	var now, most, none atomic.Int32
	var wg sync.WaitGroup
	for range 8 * runtime.NumCPU() {
		wg.Go(func() {
			l := h.takeLane(t.Context())
			if l == nil {
				none.Add(1)
				return
			}
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			runtime.Gosched()
			now.Add(-1)
			if err := l.Release(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := none.Load(); n > 0 {
		t.Errorf("%d went without a lane", n)
	}
	if n := most.Load(); n > int32(runtime.NumCPU()) {
		t.Errorf("%d had a lane at once, of %d", n, runtime.NumCPU())
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir("claims"), "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// Who does not get a lane in time goes on without, and who does not give one up loses
// it.
func TestLanesKeepNobody(t *testing.T) {
	h := newHost(t)
	var taken []*filelock.Lock
	for i := range runtime.NumCPU() {
		l, err := filelock.TryClaim(filepath.Join(h.dir("claims"), fmt.Sprint(lanePrefix, i)))
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, l)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	leave := h.Lane(ctx)
	leave()
	leave()
	for _, l := range taken {
		if err := l.Release(); err != nil {
			t.Fatal(err)
		}
	}
	for range runtime.NumCPU() {
		defer h.Lane(t.Context())()
	}
	if l := h.takeLane(t.Context()); l == nil { // one is lost after a while
		t.Error("no lane was given up")
	} else if err := l.Release(); err != nil {
		t.Error(err)
	}
}
