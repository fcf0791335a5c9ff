package firecracker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, test := range []struct {
		out  string
		want version
		bad  bool
	}{
		{out: "Firecracker v1.16.1\n\n2026-11-23T10:06:29.720381527 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n", want: version{1, 16, 1}},
		{out: "Firecracker v1.17.0-dev\n", want: version{1, 17, 0}},
		{out: "Jailer v1.16.1\n", want: version{1, 16, 1}},
		{out: "", bad: true},
		{out: "QEMU emulator version 7.2.22\n", bad: true},
		{out: "Firecracker v1.16\n", bad: true},
		{out: "Firecracker v99999999999999999999.1.1\n", bad: true},
	} {
		got, err := parseVersion(test.out)
		if got != test.want || (err != nil) != test.bad {
			t.Errorf("%q: %v, %v; want %v", test.out, got, err, test.want)
		}
	}
	if l := (version{1, 16, 1}).line(); l != "1.16" {
		t.Errorf("line %q", l)
	}
}

// fake puts a program that answers as Firecracker or its jailer does.
func fake(t *testing.T, dir, name, title, version string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in --version) echo %s v%s ;; --snapshot-version) echo v10.0.0; echo; echo exiting ;; esac\n", title, version)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbe(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	if _, err := Probe(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "skep setup firecracker") {
		t.Errorf("without one: %v", err)
	}
	path := fake(t, other, "firecracker-v1.16.1", "Firecracker", "1.16.1")
	if err := os.Symlink(path, filepath.Join(dir, "firecracker")); err != nil {
		t.Fatal(err)
	}
	h, err := Probe(t.Context(), Options{})
	if err != nil || h.Path != path || h.Version != "1.16.1" || h.Snapshots != "v10.0.0" || h.Jailer != "" {
		t.Errorf("%+v, %v", h, err)
	}
	fake(t, dir, "jailer", "Jailer", "1.15.0") // not of this release
	if h, err := Probe(t.Context(), Options{}); err != nil || h.Jailer != "" {
		t.Errorf("with a jailer of another release: %+v, %v", h, err)
	}
	if _, err := Probe(t.Context(), Options{Jailer: filepath.Join(dir, "jailer")}); err == nil || !strings.Contains(err.Error(), "1.15.0") {
		t.Errorf("with a jailer of another release, by name: %v", err)
	}
	beside := fake(t, other, "jailer", "Jailer", "1.16.1")
	if h, err := Probe(t.Context(), Options{}); err != nil || h.Jailer != beside {
		t.Errorf("with a jailer beside it: %+v, %v", h, err)
	}
	if h, err := Probe(t.Context(), Options{Jailer: "none"}); err != nil || h.Jailer != "" {
		t.Errorf("with no jailer wanted: %+v, %v", h, err)
	}
	if _, err := Probe(t.Context(), Options{Jailer: "/nonexistent/jailer"}); err == nil {
		t.Error("a jailer that is not there is no error")
	}
	for _, release := range []string{"1.7.0", "1.12.1"} {
		old := fake(t, dir, "old", "Firecracker", release)
		if _, err := Probe(t.Context(), Options{Binary: old}); err == nil || !strings.Contains(err.Error(), "at least 1.13.0") || !strings.Contains(err.Error(), "Diff") {
			t.Errorf("version %s: %v", release, err)
		}
	}
	first := fake(t, dir, "first", "Firecracker", "1.13.0")
	if _, err := Probe(t.Context(), Options{Binary: first}); err != nil {
		t.Errorf("the first version that will do: %v", err)
	}
}
