package test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestFunctionNeverReady deploys functions that cannot work. The error says
// why, and nothing is deployed.
func TestFunctionNeverReady(t *testing.T) {
	d := start(t)
	for _, c := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"wrong-port", []string{"--ready-path", "/nowhere", "--ready-timeout", "15s"}, "ready"},
		{"exits", []string{"--env", "HELLO_EXIT=7"}, "7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := d.cli(append([]string{"deploy", "functions/hello", "--name", c.name}, c.flags...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v: want one that says %q", err, c.want)
			}
			if _, err := d.client.Function(d.ctx(5*time.Second), c.name); err == nil {
				t.Error("it is deployed all the same")
			}
			if is, err := d.client.Instances(d.ctx(5*time.Second), ""); err != nil || len(is) > 0 {
				t.Errorf("instances afterwards: %v %+v", err, is)
			}
		})
	}
}

// TestHostileFunction lets a function exit under a request, log far beyond the
// cap, fork until it may not, and take all memory. The daemon answers each time
// and goes on.
func TestHostileFunction(t *testing.T) {
	d := start(t, "keep_log_mib = 1")
	d.hello("bad", "--timeout", "30s")
	t.Run("exit", func(t *testing.T) {
		a := d.get("bad", "/exit?code=3")
		if a.status != 502 || !strings.Contains(a.body, "bad") {
			t.Errorf("a function that exits under the request: %+v", a)
		}
	})
	t.Run("logs", func(t *testing.T) {
		d.mustGet("bad", "/log?bytes=16777216")
		var size int64
		filepath.Walk(filepath.Join(d.data(), "logs"), func(_ string, i os.FileInfo, err error) error {
			if err == nil && i.Mode().IsRegular() {
				size += i.Size()
			}
			return nil
		})
		if size > 4<<20 {
			t.Errorf("logs take %d bytes with a cap of 1 MiB", size)
		}
	})
	t.Run("forks", func(t *testing.T) { d.get("bad", "/fork?n=1000") })
	t.Run("memory", func(t *testing.T) { d.get("bad", "/alloc?mib=1024") })
	t.Run("timeout", func(t *testing.T) {
		d.hello("slow", "--timeout", "1s")
		if a := d.get("slow", "/sleep?ms=20000"); a.status != 504 {
			t.Errorf("a request over the timeout: %+v", a)
		}
	})
	if a := d.invoke(api.InvokeRequest{Function: "bad", Path: "/?name=again", Start: api.StartRestore}); a.status != 200 {
		t.Errorf("a new clone afterwards: %+v", a)
	}
}

// TestCorruptParts damages what a function starts from. A damaged snapshot is
// refused with its reason and the function boots; a damaged disk is an error.
func TestCorruptParts(t *testing.T) {
	for _, part := range []string{"manifest.json", "memory", "state"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel() // each boots twice, on a daemon of its own
			d := start(t)
			d.hello("hello")
			snaps, err := d.client.Snapshots(d.ctx(5*time.Second), "hello")
			if err != nil || len(snaps) != 1 {
				t.Fatalf("snapshots: %v %+v", err, snaps)
			}
			corrupt(t, filepath.Join(d.data(), "snapshots", snaps[0].ID, part))
			if part == "manifest.json" {
				d.down()
				d.up()
			}
			a := d.mustGet("hello", "/?name=alive")
			if !strings.Contains(a.body, "alive") || a.header.Get(api.HeaderStart) != "boot" {
				t.Errorf("with a corrupt %s: start %q, body %q", part, a.header.Get(api.HeaderStart), a.body)
			}
			if part != "manifest.json" {
				if err := d.client.VerifySnapshot(d.ctx(time.Minute), snaps[0].ID); err == nil {
					t.Error("verify finds nothing wrong")
				}
			}
		})
	}
	t.Run("disk", func(t *testing.T) {
		t.Parallel()
		d := start(t)
		d.hello("hello")
		disks, _ := filepath.Glob(filepath.Join(d.data(), "images", "*", "rootfs.ext4"))
		if len(disks) == 0 {
			t.Fatal("no root disk found")
		}
		for _, disk := range disks {
			corrupt(t, disk)
		}
		a := d.get("hello", "/")
		if a.status == 200 || !strings.Contains(a.body, "disk") {
			t.Errorf("with a corrupt root disk: %+v", a)
		}
	})
}

// corrupt flips a byte in the middle of the file's data.
func corrupt(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	at := st.Size() / 2
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// TestDiskFull gives the daemon a file system that has no room for a snapshot.
func TestDiskFull(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	if err := syscall.Mount("skep-test", dir, "tmpfs", 0, "size=56m"); err != nil {
		t.Skipf("mounting a small tmpfs: %v; run as root outside a container", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	d := prepareIn(t, dir)
	d.up()
	_, err := d.cli("deploy", "functions/hello", "--name", "hello")
	if err == nil || !strings.Contains(err.Error(), "space") {
		t.Fatalf("deploying with a full disk: %v; want an error that speaks of space", err)
	}
	snaps, err := d.client.Snapshots(d.ctx(5*time.Second), "")
	if err != nil || len(snaps) != 0 {
		t.Errorf("snapshots afterwards: %v %+v", err, snaps)
	}
	if _, err := d.client.Function(d.ctx(5*time.Second), "hello"); err == nil {
		t.Error("the function is deployed all the same")
	}
}
