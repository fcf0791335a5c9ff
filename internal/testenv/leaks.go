package testenv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Leaks adds to what NoLeaks looks for.
type Leaks struct {
	ProcessMark string // NAME=value in the environment, or as the last argument, of processes that must be gone
	NetNSPrefix string // of the names of network namespaces that must be gone
	Parallel    bool   // the test runs beside others: goroutines and descriptors are not compared
}

// NoLeaks fails the test when, at its end and after the cleanups registered
// later, there is more than there is now: goroutines, descriptors, children,
// and what opts name. Things that take a moment to end are given two seconds.
func NoLeaks(t testing.TB, opts ...Leaks) {
	t.Helper()
	fds, children := descriptors(), childProcesses()
	current := goleak.IgnoreCurrent()
	parallel := slices.ContainsFunc(opts, func(o Leaks) bool { return o.Parallel })
	t.Cleanup(func() {
		t.Helper()
		var left []string
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			left = left[:0]
			for _, o := range opts {
				left = append(left, marked(o.ProcessMark)...)
				left = append(left, namespaces(o.NetNSPrefix)...)
			}
			if !parallel {
				left = append(left, added(fds, descriptors())...)
				left = append(left, added(children, childProcesses())...)
			}
			if len(left) == 0 || time.Now().After(end) {
				break
			}
			runtime.GC() // closes the pipes that copying between descriptors keeps for the next time
		}
		if len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
		if parallel {
			return
		}
		if err := goleak.Find(current); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
}

// added lists what is in now and not in before.
func added(before, now []string) []string {
	return slices.DeleteFunc(now, func(s string) bool { return slices.Contains(before, s) })
}

// descriptors lists this process's open descriptors, but the runtime's own.
func descriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The directory's own descriptor is closed by now; the poller's two are
		// made when first needed and stay.
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		out = append(out, fmt.Sprintf("descriptor %s: %s", e.Name(), target))
	}
	return out
}

func childProcesses() []string {
	self := fmt.Sprintf("%d", os.Getpid())
	var out []string
	for _, dir := range processes() {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		// The name stands in parentheses and may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == self {
			out = append(out, fmt.Sprintf("child process %s (state %s): %s", filepath.Base(dir), fields[0], command(dir)))
		}
	}
	return out
}

// marked lists the processes with mark in their environment or, where a jailer
// wipes that, as their last argument, but not this one.
func marked(mark string) []string {
	if mark == "" {
		return nil
	}
	var out []string
	for _, dir := range processes() {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return string(v) == mark }) || bytes.HasSuffix(cmdline, []byte("\x00"+mark+"\x00")) {
			out = append(out, fmt.Sprintf("process %s with %s: %s", filepath.Base(dir), mark, command(dir)))
		}
	}
	return out
}

func processes() []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	return dirs
}

func command(dir string) string {
	line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	return strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
}

func namespaces(prefix string) []string {
	if prefix == "" {
		return nil
	}
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, "network namespace "+e.Name())
		}
	}
	return out
}
