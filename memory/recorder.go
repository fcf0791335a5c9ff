package memory

import (
	"sync"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// recorder notes the first touches of pages, in order. Its touch is called by
// the server's goroutine, the rest by others.
type recorder struct {
	mu      sync.Mutex
	frozen  bool
	resumed time.Time // zero until the vCPUs run
	seen    bitmap
	touches []workingset.Touch
}

// How many touches are recorded before memory for more is taken: of a guest
// without a working set, and of one with.
const (
	firstTouches    = 8192
	residualTouches = 512
)

func newRecorder(pages uint32, touches int) *recorder {
	return &recorder{seen: newBitmap(int(pages)), touches: make([]workingset.Touch, 0, touches)}
}

func (r *recorder) touch(page uint32, write bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen || r.seen.has(page) {
		return
	}
	r.seen.set(page)
	t := workingset.Touch{Page: page, Write: write}
	if !r.resumed.IsZero() {
		t.After = time.Since(r.resumed)
	}
	r.touches = append(r.touches, t)
}

// resume says that the vCPUs run from now on.
func (r *recorder) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resumed.IsZero() {
		r.resumed = time.Now()
	}
}

// freeze ends the recording and returns it; nil when it was frozen before.
func (r *recorder) freeze() []workingset.Touch {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen {
		return nil
	}
	r.frozen = true
	return r.touches
}
