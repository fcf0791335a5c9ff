package shim

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A change of anything that is delivered is seen, and nothing else is one.
func TestContent(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		t.Helper()
		if err := errors.Join(os.Symlink(to, filepath.Join(dir, "new")), os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	write("a", "1")
	link("one")
	last, err := contentOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := contentOf(dir); again.sum != last.sum {
		t.Error("it differs though nothing has changed")
	}
	for name, change := range map[string]func(){
		"a longer file": func() { write("a", "12") }, "a new file": func() { write("b", "") }, "another target": func() { link("two") },
	} {
		change()
		now, err := contentOf(dir)
		if err != nil || now.sum == last.sum {
			t.Errorf("%s is not seen: %v", name, err)
		}
		if gone := last.without(now); len(gone) > 0 {
			t.Errorf("%s: %q have gone", name, gone)
		}
		last = now
	}
	// As a kubelet changes a config map: a new directory, a new link, the old ones removed.
	for _, d := range []string{"..1/sub", "..2"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("..1/sub/x", "")
	last, _ = contentOf(dir)
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "..1")), os.Remove(filepath.Join(dir, "a"))); err != nil {
		t.Fatal(err)
	}
	now, _ := contentOf(dir)
	if gone := last.without(now); !slices.Equal(gone, []string{"..1", "a"}) {
		t.Errorf("%q have gone, want ..1 and a", gone)
	}
	if file, err := contentOf(filepath.Join(dir, "b")); err != nil || len(file.names) > 0 {
		t.Errorf("a file has %q below it: %v", file.names, err)
	}
	if _, err := contentOf(filepath.Join(dir, "none")); err == nil {
		t.Error("what is not there has a content")
	}
}
