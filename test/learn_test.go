package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestWorkingSetFollowsInput invokes a function, cold each time, first with one
// input and then with another that needs other memory: the second invocation
// with it misses as much as the first, the third hardly anything.
func TestWorkingSetFollowsInput(t *testing.T) {
	d := start(t)
	const mib, parts = 32, 4
	const pages = mib << 20 / parts / 4096 // that one input needs
	d.hello("hello", "--env", fmt.Sprintf("HELLO_TABLE_MIB=%d", mib))
	calls, file := 0, uint64(0)
	cold := func(part int) api.MemoryStats {
		t.Helper()
		words := mib << 20 / 8 / parts
		first, last := part*words, (part+1)*words-1
		want := fmt.Sprint((first + last) * words / 2)
		a := d.invoke(api.InvokeRequest{Function: "hello", Path: fmt.Sprintf("/table?parts=%d&part=%d", parts, part), Policy: "stream"})
		if a.err != nil || a.status != 200 || strings.TrimSpace(a.body) != want {
			t.Fatalf("part %d: %+v, want %s", part, a, want)
		}
		calls++
		rec := d.records("hello", calls)[0]
		if rec.Memory == nil {
			t.Fatalf("part %d: no figures of memory: %+v", part, rec)
		}
		t.Logf("part %d: %+v", part, *rec.Memory)
		if rec.Memory.Recorded || strings.Contains(rec.Memory.Note, "rewritten") {
			// It is written beside the instance's further life.
			eventually(t, "a new working set", time.Minute, func() error {
				now, err := d.workingSet()
				if err == nil && now == file {
					err = errors.New("it is the old one still")
				}
				if err == nil {
					file = now
				}
				return err
			})
		}
		return *rec.Memory
	}
	if st := cold(0); !st.Recorded {
		t.Fatalf("the first restore recorded nothing: %+v", st)
	}
	if st := cold(0); st.Missed < 0 || st.Missed > pages/16 {
		t.Errorf("the same input again missed %d pages", st.Missed)
	}
	for i := range 2 {
		// Two misses in a cluster of 16 bring the others.
		if st := cold(2); st.Missed < pages/8 || st.Missed > pages/4 {
			t.Errorf("time %d of the other input missed %d pages, it needs %d others", i, st.Missed, pages)
		}
	}
	if st := cold(2); st.Missed > pages/16 {
		t.Errorf("the working set has not followed: %d pages missed", st.Missed)
	}
	if st := cold(0); st.Missed > pages/16 {
		t.Errorf("the working set has lost the first input: %d pages missed", st.Missed)
	}
}

// workingSet is the inode of the one working set that there is.
func (d *daemon) workingSet() (uint64, error) {
	found, err := filepath.Glob(filepath.Join(d.data(), "snapshots", "*", "trace", "ws"))
	if err != nil || len(found) != 1 {
		return 0, fmt.Errorf("working sets: %v, %w", found, errors.Join(err, os.ErrNotExist))
	}
	st, err := os.Stat(found[0])
	if err != nil {
		return 0, err
	}
	return st.Sys().(*syscall.Stat_t).Ino, nil
}
