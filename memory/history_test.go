package memory

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/memory/workingset"
)

// Reading what was learned of one snapshot from a disk that does not answer
// must not hold up the restores of another.
func TestHistoryOfASlowDiskHoldsUpNobody(t *testing.T) {
	p := New(Options{})
	defer func() { _ = p.Close() }()
	slow, fast := t.TempDir(), t.TempDir()
	pipe := filepath.Join(slow, workingset.LearnedFile)
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.history(Source{SnapshotID: "slow", Dir: slow, Size: 4096})
	}()
	for p.mu.TryLock() { // until it is under way
		under := p.histories[slow] != nil
		p.mu.Unlock()
		if under {
			break
		}
		runtime.Gosched()
	}
	other := make(chan struct{})
	go func() {
		defer close(other)
		p.history(Source{SnapshotID: "fast", Dir: fast, Size: 4096})
	}()
	select {
	case <-other:
	case <-time.After(10 * time.Second):
		t.Error("the other snapshot's history waits for the slow disk")
	}
	// The pipe opens for the reader when it does for a writer.
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-read
	<-other
}
