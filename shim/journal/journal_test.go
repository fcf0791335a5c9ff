package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/skep-dev/skep/api"
)

func start(id string) Entry { return Entry{Start: &api.Invocation{ID: id}} }

func ids(entries []Entry) (list []string) {
	for _, e := range entries {
		list = append(list, e.Start.ID)
	}
	return list
}

// Whoever takes entries while others write them gets each of them, once.
func TestNoneIsLost(t *testing.T) {
	dir := t.TempDir()
	const writers, each = 8, 200
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if err := Of(dir).Append(t.Context(), start(fmt.Sprint(w, "-", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() { all.Wait(); close(written) }()
	seen := map[string]int{}
	take := func() {
		err := Of(dir).Take(t.Context(), func(list []Entry) error {
			for _, id := range ids(list) {
				seen[id]++
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for done := false; !done; {
		select {
		case <-written:
			done = true
		default:
		}
		take()
	}
	for w := range writers {
		for i := range each {
			if n := seen[fmt.Sprint(w, "-", i)]; n != 1 {
				t.Errorf("entry %d-%d came %d times", w, i, n)
			}
		}
	}
}

// What could not be kept comes again, before what is newer.
func TestTakenAgain(t *testing.T) {
	dir := t.TempDir()
	j := Of(dir)
	for _, id := range []string{"a", "b"} {
		if err := j.Append(t.Context(), start(id)); err != nil {
			t.Fatal(err)
		}
	}
	full := errors.New("the disk is full")
	if err := j.Take(t.Context(), func([]Entry) error { return full }); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if err := j.Append(t.Context(), start("c")); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := j.Take(t.Context(), func(list []Entry) error { got = append(got, ids(list)...); return nil }); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, ""); s != "abc" {
		t.Errorf("%q came", s)
	}
	if err := j.Take(t.Context(), func([]Entry) error { t.Error("it comes again"); return nil }); err != nil {
		t.Error(err)
	}
}

// A line that was cut short spoils no other, and one that is too long is an error.
func TestSpoiltLines(t *testing.T) {
	dir := t.TempDir()
	j := Of(dir)
	if err := j.Append(t.Context(), start("a")); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, dirName, newest), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"start":{"id":"b"`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := j.Append(t.Context(), start("c")); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(t.Context(), start(strings.Repeat("d", maxLine))); err == nil {
		t.Error("a line of any length is taken")
	}
	err = j.Take(t.Context(), func(list []Entry) error {
		if s := strings.Join(ids(list), ""); s != "ac" {
			t.Errorf("%q came", s)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Where nobody takes entries the newest stay.
func TestBound(t *testing.T) {
	dir := t.TempDir()
	j := Of(dir)
	long := strings.Repeat("x", maxLine/2)
	const n = 4 * maxBytes / (maxLine / 2)
	for i := range n {
		if err := j.Append(context.Background(), start(fmt.Sprint(i, long))); err != nil {
			t.Fatal(err)
		}
	}
	var sizes int64
	for _, name := range []string{newest, before} {
		if st, err := os.Stat(filepath.Join(dir, dirName, name)); err == nil {
			sizes += st.Size()
		}
	}
	if sizes > 2*(maxBytes+maxLine) {
		t.Errorf("they have %d bytes", sizes)
	}
	last := ""
	if err := j.Take(t.Context(), func(list []Entry) error { last = list[len(list)-1].Start.ID; return nil }); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(last, fmt.Sprint(n-1, "x")) {
		t.Errorf("the last is %.10s", last)
	}
}
