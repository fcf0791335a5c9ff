package memory

import (
	"slices"
	"sync"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// recorder notes the first touches of pages, in order. Its touch is called by
// the server's goroutine, the rest by others.
type recorder struct {
	mu      sync.Mutex
	frozen  bool
	resumed time.Time     // zero until the vCPUs run
	earlier time.Duration // for how long they had run before, for somebody else
	seen    bitmap
	touches []workingset.Touch
	besides []workingset.Touch // pages installed beside missed ones, and when; whether they are touched is not known
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
	if r.isNew(page) {
		r.touches = append(r.touches, workingset.Touch{Page: page, Write: write, After: r.after()})
	}
}

// beside notes a page that came with a missed one.
func (r *recorder) beside(page uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isNew(page) {
		r.besides = append(r.besides, workingset.Touch{Page: page, After: r.after()})
	}
}

// isNew says that a page is to be recorded, once. r.mu is held, as in after.
func (r *recorder) isNew(page uint32) bool {
	if r.frozen || r.seen.has(page) {
		return false
	}
	r.seen.set(page)
	return true
}

func (r *recorder) after() time.Duration {
	if r.resumed.IsZero() {
		return r.earlier
	}
	return r.earlier + time.Since(r.resumed)
}

// follow begins with what another has recorded.
func (r *recorder) follow(touches []workingset.Touch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range touches {
		if r.isNew(t.Page) {
			r.touches = append(r.touches, t)
		}
		r.earlier = max(r.earlier, t.After)
	}
}

// resume says that the vCPUs run from now on.
func (r *recorder) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resumed.IsZero() {
		r.resumed = time.Now()
	}
}

// soFar is what has been recorded; nothing for a nil r.
func (r *recorder) soFar() []workingset.Touch {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.touches)
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
