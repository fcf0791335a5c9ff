package base

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/internal/tracing"
)

// Starts keep the processors busy. Many at once take longer, all together, than a few
// after one another: a guest that waits for a processor has timers go off meanwhile,
// and finds caches that others have filled. So there are as many lanes as processors,
// which all shims of the host share, and what keeps one busy waits for a lane.
//
// That is for speed only, and nobody is kept from starting by what hangs: who has a
// lane for long loses it, and who waits for long goes on without one.
const (
	laneHeld  = 3 * time.Second
	laneAwait = time.Minute
)

// Lane waits for a lane and takes it. leave gives it up; it must be called, and is
// idempotent.
func (h *Host) Lane(ctx context.Context) (leave func()) {
	l := h.takeLane(ctx)
	release := sync.OnceFunc(func() {
		if err := l.Release(); err != nil {
			h.log.Warn("leaving a lane", "error", err)
		}
	})
	timer := time.AfterFunc(laneHeld, release)
	return func() {
		timer.Stop()
		release()
	}
}

// takeLane is nil when it went on without one.
func (h *Host) takeLane(ctx context.Context) *filelock.Lock {
	lanes := runtime.NumCPU()
	first := rand.IntN(lanes)
	lane := func(i int) string { return filepath.Join(h.dir("claims"), fmt.Sprint(lanePrefix, (first+i)%lanes)) }
	for i := range lanes {
		if l, err := filelock.TryClaim(lane(i)); err == nil {
			return l
		}
	}
	began := time.Now()
	defer func() { tracing.Part(ctx, "wait for a lane", began, time.Since(began)) }()
	ctx, cancel := context.WithTimeout(ctx, laneAwait)
	defer cancel()
	l, err := filelock.Claim(ctx, lane(0))
	if err != nil {
		h.log.Debug("starting without a lane", "error", err)
		return nil
	}
	return l
}

const lanePrefix = "lane-"
