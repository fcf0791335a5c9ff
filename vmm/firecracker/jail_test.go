package firecracker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/process"
)

const uid = 61938

// look is a static program that does what its arguments say, for a root
// directory that has no libraries.
func look(t *testing.T) string {
	t.Helper()
	dir := testenv.Dir(t)
	out := filepath.Join(dir, binary)
	if err := testenv.Build(out, "vmm/firecracker/testdata/look"); err != nil {
		t.Skip(err)
	}
	return out
}

// TestJail runs a program in the jail that this package builds, and has it say
// what it sees.
func TestJail(t *testing.T) {
	testenv.Need(t, "root")
	testenv.NoLeaks(t)
	dir := testenv.Dir(t)
	put := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	h := vmm.Host{ID: "test-1", Dir: filepath.Join(dir, "host"), UID: uid, GID: uid}
	if err := os.Mkdir(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	memory := put("new", "", 0o600)
	if err := os.Chown(memory, uid, uid); err != nil {
		t.Fatal(err)
	}
	j := &jail{host: h, binary: look(t), attached: true, entries: []entry{
		{name: diskName, path: put("disk, with a comma", "the disk", 0o444)},
		{name: stateName, path: put("secret", "the state", 0o400), copy: true},
		{name: memoryName, path: memory, writable: true},
	}}
	if err := j.make(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	p, err := process.Start(process.Spec{Path: "/" + binary, Host: h, AsUser: true, Prepare: j.mount, Stdout: &out, MaxFiles: maxFiles})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if p.ExitCode() != 0 {
		t.Error(p.Err())
	}
	checkHostile(t, j)
	j.words.close()
	if err := errors.Join(p.Kill(), j.remove()); err != nil {
		t.Error(err)
	}
	if limits := "open files 2048 core 0 file size 67108864\n"; !strings.Contains(out.String(), limits) && mayLimit() {
		t.Errorf("no line %q in:\n%s", limits, out.String())
	}
	for _, want := range []string{
		fmt.Sprintf("user %d %[1]d groups []", uid), "in / of []",
		"root.ext4: the disk", "write root.ext4: read-only file system", "state: the state", "write memory: <nil>",
		"write run/new: <nil>", "write new: permission denied", "mknod: operation not permitted", "kvm: character device of 61938",
		"replacing a socket: <nil>", "many directories: true",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no line %q in:\n%s", want, out.String())
		}
	}
	if b, err := os.ReadFile(memory); err != nil || string(b) != "written" {
		t.Errorf("memory: %q, %v", b, err)
	}
	// Nothing of it is in this mount namespace, nor left.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts here: %v\n%s", err, mounts)
	}
	if left, err := os.ReadDir(h.Dir); err != nil || len(left) != 1 || left[0].Name() != "stderr.log" {
		t.Errorf("left: %v, %v", left, err)
	}
}

// checkHostile makes sure that what the process left in its run directory is
// neither waited for nor followed.
func checkHostile(t *testing.T, j *jail) {
	t.Helper()
	if err := process.CopyForeign(io.Discard, j.dir, outName, uid, maxState); !errors.Is(err, process.ErrForeign) {
		t.Errorf("a FIFO in place of the state: %v", err)
	}
	for _, name := range []string{apiName, faultsName} {
		if conn, err := process.DialForeign(t.Context(), j.dir, name, os.Getpid()); err == nil {
			conn.Close()
			t.Errorf("%s is connected to", name)
		}
	}
	if st, err := os.Stat("/etc/passwd"); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("a file of the host's was given away: %v", err)
	}
}

// mayLimit says whether this process may set the limits of another user's.
func mayLimit() bool {
	h, d := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	return unix.Capget(&h, &d[0]) == nil && d[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestJailNamesWhatCannotBeRead(t *testing.T) {
	testenv.Need(t, "root")
	dir := testenv.Dir(t)
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		uid, gid int
		mode     os.FileMode
		writable bool
		ok       bool
	}{
		{0, 0, 0o600, false, false}, {0, 0, 0o604, false, true}, {0, uid, 0o640, false, true}, {0, uid, 0o604, false, false},
		{uid, 0, 0o400, false, true}, {uid, 0, 0o400, true, false}, {uid, 0, 0o600, true, true},
	} {
		if err := errors.Join(os.Chown(path, test.uid, test.gid), os.Chmod(path, test.mode)); err != nil {
			t.Fatal(err)
		}
		e := entry{name: diskName, path: path, writable: test.writable}
		if err := e.check(vmm.Host{UID: uid, GID: uid}); (err == nil) != test.ok {
			t.Errorf("%+v: %v", test, err)
		}
	}
	e := entry{name: diskName, path: path + "-not"}
	if err := e.check(vmm.Host{UID: uid, GID: uid}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a file that is not there: %v", err)
	}
}
