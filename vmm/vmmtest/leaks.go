package vmmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// noLeaks makes sure, after all other clean-up of the test, that processes,
// descriptors and goroutines are those that were there before.
func noLeaks(t testing.TB) {
	t.Helper()
	testenv.NoLeaks(t, testenv.Leaks{ProcessMark: mark()})
}

// marked are the processes that have this test's mark in their environment, or,
// where a jailer wipes that, as their last argument.
func marked(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, p := range paths {
		env, err := os.ReadFile(p)
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
		if err == nil && (bytes.Contains(env, []byte(mark())) || bytes.HasSuffix(cmdline, []byte(mark()+"\x00"))) {
			found = append(found, filepath.Dir(p)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}
