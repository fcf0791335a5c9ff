package vmmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// noLeaks makes sure, after all other clean-up of the test, that processes,
// descriptors and goroutines are those that were there before.
func noLeaks(t testing.TB) {
	t.Helper()
	before := descriptors(t)
	goroutines := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		for _, p := range marked(t) {
			t.Errorf("a process is left: %s", p)
		}
		goleak.VerifyNone(t, goroutines)
		after := descriptors(t)
		for fd, what := range after {
			if before[fd] != what {
				t.Errorf("descriptor %s is left: %s", fd, what)
			}
		}
	})
}

// descriptors are those of this process, with what they are.
func descriptors(t testing.TB) map[string]string {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]string{}
	for _, e := range entries {
		if what, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // all but ReadDir's own
			fds[e.Name()] = what
		}
	}
	return fds
}

// marked are the processes that have this test's mark in their environment.
func marked(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, p := range paths {
		env, err := os.ReadFile(p)
		if err == nil && bytes.Contains(env, []byte(mark())) {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			found = append(found, filepath.Dir(p)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}
