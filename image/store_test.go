package image

import (
	"bytes"
	"context"
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
	for i := range stores {
		var err error
		if stores[i], err = Open(dir, Options{}); err != nil {
			t.Fatal(err)
		}
		defer stores[i].Close()
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
	digests, err := stores[0].List()
	if err != nil || len(digests) != 1 {
		t.Fatalf("there are %v, %v", digests, err)
	}
	if err := stores[0].Remove(digests[0]); !errors.Is(err, ErrInUse) {
		t.Errorf("removed although the other process uses it: %v", err)
	}
	for _, s := range stores {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
	if err := stores[0].Remove(digests[0]); err != nil {
		t.Errorf("nobody uses it: %v", err)
	}
	if err := stores[1].Use(digests[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("it was removed, and can be used: %v", err)
	}
	nothingLeft(t, stores[0])
}

// TestOpenLeavesWhatOthersMake opens a store while another process makes an image.
func TestOpenLeavesWhatOthersMake(t *testing.T) {
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", strings.Repeat("x", 1<<20)))))
	var once sync.Once
	img, err := s.Fetch(t.Context(), ref, func(stage string, _, _ int64) {
		if stage != "build" {
			return
		}
		once.Do(func() {
			other, err := Open(s.dir, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close()
			if left, err := os.ReadDir(s.dir); err != nil || len(left) != 2 {
				t.Errorf("there are %v, %v: want what is being made, and the claim to it", left, err)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, img.Disk)
}

// TestWaitingIsCancelled waits for another process, and for another goroutine.
func TestWaitingIsCancelled(t *testing.T) {
	a := open(t, Options{})
	b, err := Open(a.dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", "x"))))
	var once sync.Once
	_, err = a.Fetch(t.Context(), ref, func(string, int64, int64) {
		once.Do(func() {
			for _, s := range []*Store{a, b} {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				if _, err := s.Fetch(ctx, ref, nil); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Fetch(t.Context(), ref, nil); err != nil {
		t.Error(err)
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

// TestUsage: a fetch of what is there counts as use, over a restart, too.
func TestUsage(t *testing.T) {
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", "x"))))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	for name, use := range map[string]func() error{
		"fetch": func() error { _, err := s.Fetch(t.Context(), ref, nil); return err },
		"use":   func() error { return s.Use(img.Digest) },
	} {
		if err := os.Chtimes(filepath.Dir(img.Disk), long, long); err != nil {
			t.Fatal(err)
		}
		if last, bytes, err := s.Usage(img.Digest); err != nil || time.Since(last) < 59*time.Minute || bytes != occupied(t, img.Disk)+occupied(t, filepath.Join(filepath.Dir(img.Disk), metaFile)) {
			t.Errorf("%s: before: %v, %d bytes, %v", name, last, bytes, err)
		}
		if err := use(); err != nil {
			t.Fatal(err)
		}
		if last, _, err := s.Usage(img.Digest); err != nil || !last.After(long.Add(time.Minute)) {
			t.Errorf("%s: after: %v, %v", name, last, err)
		}
	}
	absent := "sha256:" + strings.Repeat("0", 64)
	if err := s.Use(absent); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}
