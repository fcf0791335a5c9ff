package doctor

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, checks)
	return Check{}
}

func TestRunTriesEverythingAndLeavesNothing(t *testing.T) {
	testenv.NoLeaks(t)
	dir := testenv.Dir(t)
	checks := Run(t.Context(), Options{DataDir: filepath.Join(dir, "not", "there", "yet")})
	for _, c := range checks {
		t.Logf("%-14s %-5s %s", c.Name, c.Status, c.Detail)
		if c.Detail == "" || (c.Status != OK) != (c.Cure != "") {
			t.Errorf("%+v: wants a detail, and a cure unless it is ok", c)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for name, need := range map[string]string{
		"root": "root", "userfaultfd": "uffd", "tap": "tap", "nftables": "nft", "qemu": "qemu", "hardware kvm": "kvm",
	} {
		if got, want := find(t, checks, name).Status == OK, testenv.Has(need); got != want {
			t.Errorf("%s is ok: %v; but the host has it: %v", name, got, want)
		}
	}
	if c := find(t, checks, "guest kernel"); c.Status != Fail || c.Cure != "skep setup" {
		t.Errorf("without a kernel: %+v", c)
	}
	data, err := json.Marshal(checks)
	if err != nil {
		t.Fatal(err)
	}
	var back []Check
	if err := json.Unmarshal(data, &back); err != nil || len(back) != len(checks) || back[0] != checks[0] {
		t.Errorf("through JSON: %v, %v", back, err)
	}
}

func TestRunFindsWhatIsMissing(t *testing.T) {
	dir := testenv.Dir(t)
	fake := filepath.Join(dir, "firecracker")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\n[ $1 = --version ] && echo Firecracker v9.9.9 || echo v10.0.0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	checks := Run(t.Context(), Options{DataDir: dir, QEMU: filepath.Join(dir, "no-qemu"), Firecracker: fake, Kernel: kernel, CgroupRoot: dir})
	for _, tc := range []struct {
		name   string
		status Status
		detail string
	}{
		{"firecracker", OK, "9.9.9"},
		{"guest kernel", Fail, "vmlinux"},
		{"cgroup v2", Warn, dir},
	} {
		if c := find(t, checks, tc.name); c.Status != tc.status || !strings.Contains(c.Detail, tc.detail) {
			t.Errorf("%+v, want %s and %q", c, tc.status, tc.detail)
		}
	}
	if c := find(t, checks, "qemu"); c.Status == OK || !strings.Contains(c.Cure, "qemu-system-x86") {
		t.Errorf("without QEMU: %+v", c)
	}
	if OKAll(checks) {
		t.Error("all is said to be well")
	}
	if c := find(t, Run(t.Context(), Options{DataDir: "/proc/none", CgroupRoot: "none"}), "disk speed"); c.Status != Warn {
		t.Errorf("a disk that cannot be written: %+v", c)
	}
}

func TestRunEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c := find(t, Run(ctx, Options{DataDir: testenv.Dir(t)}), "disk speed"); c.Status != Warn {
		t.Errorf("%+v", c)
	}
}
