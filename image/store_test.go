package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// TestTwoProcesses has a store open twice, which is to the kernel's locks as if
// two processes had it.
func TestTwoProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	var stores [2]*Store
	half := filepath.Join(dir, staging+"of-the-first")
	for i := range stores {
		var err error
		if stores[i], err = Open(dir, Options{}); err != nil {
			t.Fatal(err)
		}
		defer stores[i].Close()
		if i == 0 {
			if err := os.Mkdir(half, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Stat(half); err != nil {
		t.Errorf("the second process removed what the first is making: %v", err)
	}
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", strings.Repeat("x", 1<<20)))))
	var builds atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		var once sync.Once
		wg.Go(func() {
			_, err := stores[i%2].Fetch(t.Context(), ref, func(string, int64, int64) { once.Do(func() { builds.Add(1) }) })
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if builds.Load() != 1 {
		t.Errorf("%d fetches did the work: want 1", builds.Load())
	}
	for _, s := range stores {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
	if l, err := s.List(); err != nil || len(l) != 1 {
		t.Errorf("there are %v, %v", l, err)
	}
}

// TestWaitingIsCancelled waits for another process, and for another goroutine.
func TestWaitingIsCancelled(t *testing.T) {
	a := open(t, Options{})
	b, err := Open(a.dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	digest := "sha256:" + strings.Repeat("ab", 32)
	release, err := a.locks.claim(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{a, b} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := s.locks.claim(ctx, digest); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	}
	release()
	for _, s := range []*Store{a, b} {
		release, err := s.locks.claim(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
}

func TestDamagedMeta(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, s *Store, img Image){
		"emptied": func(t *testing.T, _ *Store, img Image) {
			write(t, filepath.Join(filepath.Dir(img.Disk), metaFile), "")
		},
		"of another image": func(t *testing.T, s *Store, img Image) {
			path := filepath.Join(filepath.Dir(img.Disk), metaFile)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, strings.ReplaceAll(string(b), img.Digest, "sha256:"+strings.Repeat("0", 64)))
		},
		"disk gone":      func(t *testing.T, _ *Store, img Image) { os.Remove(img.Disk) },
		"disk truncated": func(t *testing.T, _ *Store, img Image) { os.Truncate(img.Disk, 4096) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{})
			ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", "#!"))))
			img, err := s.Fetch(t.Context(), ref, nil)
			if err != nil {
				t.Fatal(err)
			}
			damage(t, s, img)
			if _, err := s.Get(img.Digest); !errors.Is(err, ErrDamaged) {
				t.Errorf("error %v: want %v", err, ErrDamaged)
			}
			again, err := s.Fetch(t.Context(), ref, nil)
			if err != nil || again.DiskDigest != img.DiskDigest {
				t.Errorf("made again: %v, %+v", err, again)
			}
		})
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestManyFiles needs more than one group of inodes.
func TestManyFiles(t *testing.T) {
	testenv.Need(t, "mkfs")
	es := make([]entry, 33_000)
	for i := range es {
		es[i] = file(fmt.Sprintf("d%d/f%d", i%7, i), "")
	}
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, es...)))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, img.Disk)
	if got := inspect(t, img.Disk, "stat /d6/f32997"); !strings.Contains(got, "regular") {
		t.Errorf("a file is missing: %s", got)
	}
}

// acl is an access control list as getxattr shows it.
func acl(entries ...[3]uint32) string {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

func TestExtendedAttributes(t *testing.T) {
	testenv.Need(t, "mkfs")
	const none = 0xffffffff
	list := acl([3]uint32{1, 6, none}, [3]uint32{2, 4, 1000}, [3]uint32{4, 4, none}, [3]uint32{16, 4, none}, [3]uint32{32, 4, none})
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	e := entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.system.posix_acl_access": list,
		"SCHILY.xattr.security.selinux": "label", "SCHILY.xattr.com.apple.quarantine": "q", "SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.user.long": strings.Repeat("v", 1000),
	}}, "x"}
	old := entry{tar.Header{Name: "old", Typeflag: tar.TypeReg}, ""}
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, e, old)))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, img.Disk)
	got := inspect(t, img.Disk, "ea_list /f")
	for _, want := range []string{"security.capability (20)", "system.posix_acl_access (28)", "user.long (1000)"} {
		if !strings.Contains(got, want) {
			t.Errorf("the disk lacks %s:\n%s", want, got)
		}
	}
	for _, not := range []string{"selinux", "apple", "overlay"} {
		if strings.Contains(got, not) {
			t.Errorf("the disk has %s:\n%s", not, got)
		}
	}
	disk, err := diskACL([]byte(list))
	if want := "\x01\x00\x00\x00" + "\x01\x00\x06\x00" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00" + "\x10\x00\x04\x00" + "\x20\x00\x04\x00"; err != nil || string(disk) != want {
		t.Errorf("the list becomes %x, %v: want %x", disk, err, want)
	}
	for _, bad := range []string{"", "\x01\x00\x00\x00", list[:len(list)-1]} {
		if _, err := diskACL([]byte(bad)); err == nil {
			t.Errorf("%x is taken for an access control list", bad)
		}
	}
}

func FuzzDiskACL(f *testing.F) {
	f.Add([]byte(acl([3]uint32{2, 4, 1000})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := diskACL(b); err == nil && (len(out) > len(b) || out[0] != 1) {
			t.Errorf("%x gives %x", b, out)
		}
	})
}

// TestOneDirectoryOneDigest changes a directory in every way that counts.
func TestOneDirectoryOneDigest(t *testing.T) {
	testenv.Need(t, "root")
	make := func() string {
		dir := t.TempDir()
		for _, name := range []string{"b", "a", "sub/c"} {
			write(t, filepath.Join(dir, name), name)
		}
		write(t, filepath.Join(dir, ConfigFile), `{"entrypoint":["/a"]}`)
		if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b", "sub/c", "sub", "link", "."} {
			path := filepath.Join(dir, name)
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	s := open(t, Options{})
	var seen []string
	for i, change := range []func(dir string) error{
		func(string) error { return nil },
		func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("A"), 0o644) },
		func(dir string) error { return os.Chmod(filepath.Join(dir, "a"), 0o4755) },
		func(dir string) error { return os.Lchown(filepath.Join(dir, "link"), 7, 7) },
		func(dir string) error { return unix.Setxattr(filepath.Join(dir, "a"), "user.bee", []byte("honey"), 0) },
		func(dir string) error { return os.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "c")) },
		func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ConfigFile), []byte(`{"entrypoint":["/b"]}`), 0o644)
		},
		func(dir string) error { return os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "z")) },
		func(dir string) error {
			return unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
		},
		func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644) },
	} {
		first, second := make(), make()
		if err := errors.Join(change(first), change(second)); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		for _, d := range []string{first, second} { // times of what the change touched
			filepath.WalkDir(d, func(path string, _ os.DirEntry, _ error) error {
				return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}, unix.AT_SYMLINK_NOFOLLOW)
			})
		}
		a, err := s.Fetch(t.Context(), "dir:"+first, nil)
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		b, err := open(t, Options{}).Fetch(t.Context(), "dir:"+second, nil)
		if err != nil || a.Digest != b.Digest || a.DiskDigest != b.DiskDigest {
			t.Errorf("change %d: %v: two equal directories give %s and %s", i, err, a.Digest, b.Digest)
		}
		if slices.Contains(seen, a.Digest) {
			t.Errorf("change %d does not change the digest", i)
		}
		seen = append(seen, a.Digest)
		checkDisk(t, a.Disk)
		if st, err := os.Stat(a.Disk); err != nil || st.Mode().Perm() != 0o444 {
			t.Errorf("the disk's mode: %v, %v", st.Mode(), err)
		}
	}
}

func TestDirectoryChangedWhileRead(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), "one")
	write(t, filepath.Join(dir, ConfigFile), `{}`)
	s := open(t, Options{})
	_, err := s.Fetch(t.Context(), "dir:"+dir, func(stage string, _, _ int64) {
		if stage == "pull" {
			write(t, filepath.Join(dir, "b"), "two")
		}
	})
	if err == nil || !strings.Contains(err.Error(), "changed while it was read") {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, s)
}

func TestDirectoryLimits(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, ConfigFile), `{}`)
	for i := range 10 {
		write(t, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("x", 10_000))
	}
	for want, o := range map[string]Options{"larger than the limit": {MaxBytes: 50_000}, "more than 5 files": {MaxEntries: 5}} {
		s := open(t, o)
		if _, err := s.Fetch(t.Context(), "dir:"+dir, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v: want one with %q", err, want)
		}
		nothingLeft(t, s)
	}
}

func FuzzReadConfig(f *testing.F) {
	for _, s := range []string{`{"entrypoint":["/a"],"env":["A=b"],"user":"1:2"}`, `{}`, `{}{}`, `null`, `[`} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(d)
		if err := os.WriteFile(filepath.Join(d, ConfigFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readConfig(d)
		if err != nil {
			return
		}
		h1, err1 := newDirHash(c)
		h2, err2 := newDirHash(c)
		if err1 != nil || err2 != nil || !bytes.Equal(h1.Sum(nil), h2.Sum(nil)) {
			t.Errorf("%s: %v %v", b, err1, err2)
		}
	})
}

func FuzzReadMeta(f *testing.F) {
	f.Add([]byte(`{"digest":"sha256:00","disk_bytes":1,"disk_digest":"x","config":{},"ref":"r","stamp":{"dev":1,"ino":2,"size":3,"mtime_ns":4,"ctime_ns":5}}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readMeta(path)
	})
}
