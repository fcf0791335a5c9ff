package shim

import (
	"runtime/debug"
	"testing"
)

// The heap is left alone from a container's creation on, however that ends.
func TestTidy(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	untidy()
	if p := debug.SetGCPercent(100); p != untidyPercent {
		t.Errorf("at the start: %d", p)
	}
	untidy()
	r := &room{ending: make(chan struct{}), over: make(chan struct{})}
	r.close()
	if p := debug.SetGCPercent(100); p != tidyPercent {
		t.Errorf("when it has ended: %d", p)
	}
	untidy()
	r.awaitRest()
	if p := debug.SetGCPercent(100); p != tidyPercent {
		t.Errorf("at rest: %d", p)
	}
}
