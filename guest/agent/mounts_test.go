package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tree"
)

// newRoot makes an empty root, and a place for what is delivered.
func newRoot(t *testing.T) string {
	t.Helper()
	root, was := t.TempDir(), deliveredDir
	deliveredDir = filepath.Join(t.TempDir(), "delivered")
	if err := errors.Join(unix.Mount("tmpfs", root, "tmpfs", 0, ""), unix.Mount("", root, "", unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		_ = unix.Unmount(deliveredDir, unix.MNT_DETACH) // of a test that has failed
		deliveredDir = was
	})
	return root
}

// mounts makes them in the root, and has the station deliver to there.
func (s *station) mounts(root string, all ...guest.Mount) {
	s.t.Helper()
	m, err := mountAll(root, all)
	if err == nil {
		err = m.restrict()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		for _, d := range m.at {
			d.dir.Close()
		}
	})
	s.fn.root, s.fn.deliveries = root, m.deliveries
}

// deliver delivers what is in a directory or file, and takes away what is gone.
func (s *station) deliver(source, to string, gone ...string) error {
	s.t.Helper()
	root, err := os.OpenRoot(filepath.Dir(source))
	if err != nil {
		s.t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	if err := tree.PackChanged(root, filepath.Base(source), guest.Delivered, gone, &b); err != nil {
		s.t.Fatal(err)
	}
	return guest.Deliver(s.ctx(), s.dial(), to, &b)
}

// atomic writes files as a kubelet does: in a directory of their own, to which a link
// leads that is replaced.
func atomic(t *testing.T, dir, stamp string, files map[string]string) {
	t.Helper()
	err := os.MkdirAll(filepath.Join(dir, stamp), 0o755)
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, stamp, name), []byte(text), 0o640))
		_ = os.Symlink("..data/"+name, filepath.Join(dir, name)) // it may be there
	}
	err = errors.Join(err, os.Symlink(stamp, filepath.Join(dir, "..new")), os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")))
	if err != nil {
		t.Fatal(err)
	}
}

// Nobody can write to what is mounted read-only, but the host delivers to it.
func TestReadOnlyMounts(t *testing.T) {
	s := newStation(t)
	root := newRoot(t)
	// As images have it: a link in the way of a directory, and one in the place of a file.
	err := errors.Join(os.MkdirAll(root+"/run", 0o755), os.MkdirAll(root+"/var", 0o755), os.Symlink("/run", root+"/var/run"),
		os.MkdirAll(root+"/etc/ssl", 0o755), os.Symlink("../real/ca.pem", root+"/etc/ssl/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	s.mounts(root,
		guest.Mount{Path: "/var/run/map", Kind: guest.MountDirectory, Options: []string{"ro", "noexec"}},
		guest.Mount{Path: "/var/run/map/sub", Bytes: 1 << 20},
		guest.Mount{Path: "/etc/ssl/ca.pem", Kind: guest.MountFile, Options: []string{"ro"}},
		guest.Mount{Path: "/etc/message", Kind: guest.MountFile},
		guest.Mount{Path: "/scratch", Options: []string{"ro"}})
	source := t.TempDir()
	atomic(t, source+"/map", "..1", map[string]string{"a": "one", "b": "two"})
	file := filepath.Join(source, "file")
	for _, name := range []string{file, source + "/message"} {
		if err := os.WriteFile(name, []byte("old and long"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.deliver(source+"/map", "/var/run/map/"), s.deliver(file, "/etc/ssl/ca.pem"), s.deliver(source+"/message", "/etc/message")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/run/map/a", "/run/map/..1/a", "/run/map/new", "/etc/real/ca.pem", "/scratch/new"} {
		if err := os.WriteFile(root+name, nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing to %s: %v", name, err)
		}
	}
	for _, err := range []error{os.Chmod(root+"/run/map/..1/a", 0o777), os.Remove(root + "/run/map/b"), os.Chmod(root+"/etc/real/ca.pem", 0o777), os.Chtimes(root+"/run/map", time.Unix(1, 0), time.Unix(1, 0))} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("a change is answered with %v", err)
		}
	}
	for _, name := range []string{"/run/map/sub/new", "/etc/message", "/etc/other"} {
		if err := os.WriteFile(root+name, []byte("own"), 0o644); err != nil {
			t.Error(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root+"/run/map", &st); err != nil || st.Flags&unix.ST_NOEXEC == 0 || st.Blocks*uint64(st.Bsize) != 2*guest.MaxDelivered {
		t.Errorf("%+v, %v", st, err)
	}
	if left, err := os.ReadDir(deliveredDir); err != nil || len(left) > 0 {
		t.Errorf("a path leads to where it can be written to: %v, %v", left, err)
	}

	// What changes on the host arrives, whole, also for who has a file open.
	open, err := os.Open(root + "/etc/real/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	atomic(t, source+"/map", "..2", map[string]string{"a": "three"})
	if err := errors.Join(os.RemoveAll(source+"/map/..1"), os.Remove(source+"/map/b"), os.WriteFile(file, []byte("new"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.deliver(source+"/map", "/var/run/map", "mount/..1", "mount/b"), s.deliver(file, "/etc/ssl/ca.pem")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"/run/map/a": "three", "/etc/real/ca.pem": "new", "/run/map/sub/new": "own"} {
		if b, err := os.ReadFile(root + name); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v, want %q", name, b, err, want)
		}
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "new" {
		t.Errorf("who has it open reads %q, %v", b, err)
	}
	if entries, err := os.ReadDir(root + "/run/map"); err != nil || len(entries) != 4 { // ..2, ..data, a, sub
		t.Errorf("there are %v, %v", entries, err)
	}
	if err := s.deliver(file, "/etc/other"); err == nil || !strings.Contains(err.Error(), "/etc/other") {
		t.Errorf("delivering to what is no mount: %v", err)
	}
	for _, name := range []string{"mounted", "../x", "other/x"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg}), w.Close()); err != nil {
			t.Fatal(err)
		}
		_ = guest.Deliver(s.ctx(), s.dial(), "/var/run/map", &b) // left out, or an error
	}
	if left, err := filepath.Glob(inFD(s.fn.deliveries.at["/var/run/map"].dir) + "/*"); err != nil || len(left) != 1 {
		t.Errorf("beside what is mounted there are %v, %v", left, err)
	}
}

// A mount that cannot be made is an error that names it.
func TestMountsThatCannotBe(t *testing.T) {
	newStation(t)
	root := newRoot(t)
	if err := errors.Join(os.WriteFile(root+"/file", nil, 0o644), os.Mkdir(root+"/dir", 0o755), os.Symlink("loop", root+"/loop")); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]guest.Mount{
		"a directory over a file": {Path: "/file", Kind: guest.MountDirectory},
		"a file over a directory": {Path: "/dir", Kind: guest.MountFile},
		"a file in a file":        {Path: "/file/x", Kind: guest.MountFile},
		"a loop of links":         {Path: "/loop", Kind: guest.MountFile},
		"another kind":            {Path: "/x", Kind: "other"},
		"an option of tmpfs":      {Path: "/x", Options: []string{"a,b"}},
	} {
		if _, err := mountAll(root, []guest.Mount{m}); err == nil || !strings.Contains(err.Error(), m.Path) {
			t.Errorf("%s: %v", name, err)
		}
		_ = unix.Unmount(deliveredDir, unix.MNT_DETACH) // where it was made
	}
}
