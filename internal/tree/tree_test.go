package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

func open(t *testing.T, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestRoundTrip(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	when := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, content := range map[string]string{"top/a": "one", "top/deep/er/b": strings.Repeat("x", 100_000), "top/script": "#!"} {
		p := filepath.Join(from, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o600), os.Chtimes(p, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Chmod(filepath.Join(from, "top/script"), 0o755|os.ModeSetuid), os.Symlink("/etc/passwd", filepath.Join(from, "top/link")),
		os.Chmod(filepath.Join(from, "top/deep/er"), 0o500))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(to, "other"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "other/a"), []byte("an older and longer one"), 0o644); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if err := Pack(open(t, from), "top", "other", &stream); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(open(t, to), &stream, Options{Owner: os.Getuid() == 0}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"other/a": "one", "other/deep/er/b": strings.Repeat("x", 100_000)} {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
			t.Errorf("%s: %.20q, %v", name, got, err)
		}
	}
	if st, err := os.Stat(filepath.Join(to, "other/script")); err != nil || st.Mode() != 0o755|fs.ModeSetuid || !st.ModTime().Equal(when) {
		t.Errorf("script: %v, %v", st, err)
	}
	if st, err := os.Stat(filepath.Join(to, "other/deep/er")); err != nil || st.Mode().Perm() != 0o500 {
		t.Errorf("directory: %v, %v", st, err)
	}
	if target, err := os.Readlink(filepath.Join(to, "other/link")); err != nil || target != "/etc/passwd" {
		t.Errorf("link: %q, %v", target, err)
	}
	if left, _ := filepath.Glob(filepath.Join(to, "other", ".skep*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// stream makes a tar of these; a file's content is its name.
func stream(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, h.Name)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestNothingLeavesTheDirectory(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"dots":           {{Name: "../out", Typeflag: tar.TypeReg}},
		"dots inside":    {{Name: "a/../../out", Typeflag: tar.TypeReg}},
		"link":           {{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, {Name: "l/out", Typeflag: tar.TypeReg}},
		"absolute link":  {{Name: "l", Linkname: "OUTSIDE", Typeflag: tar.TypeSymlink}, {Name: "l/out", Typeflag: tar.TypeReg}},
		"link's link":    {{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/l", Linkname: "../..", Typeflag: tar.TypeSymlink}, {Name: "d/l/out", Typeflag: tar.TypeReg}},
		"hard link":      {{Name: "h", Linkname: "../secret", Typeflag: tar.TypeLink}},
		"hard over link": {{Name: "l", Linkname: "../secret", Typeflag: tar.TypeSymlink}, {Name: "l/h", Linkname: "l", Typeflag: tar.TypeLink}},
		"its own link":   {{Name: "there/out", Typeflag: tar.TypeReg}},
		"dir over link":  {{Name: "there", Typeflag: tar.TypeDir, Mode: 0o777}},
		"device":         {{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"pipe":           {{Name: "pipe", Typeflag: tar.TypeFifo}},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			dir := filepath.Join(outside, "in")
			err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600),
				os.Mkdir(filepath.Join(outside, "away"), 0o700), os.Symlink("../away", filepath.Join(dir, "there")))
			if err != nil {
				t.Fatal(err)
			}
			for i := range headers {
				headers[i].Linkname = strings.ReplaceAll(headers[i].Linkname, "OUTSIDE", outside)
			}
			if err := Unpack(open(t, dir), stream(t, headers...), Options{}); err == nil {
				t.Error("it was unpacked")
			}
			entries, err := os.ReadDir(outside)
			if err != nil || len(entries) != 3 {
				t.Errorf("outside there are %v, %v", entries, err)
			}
			if away, err := os.ReadDir(filepath.Join(outside, "away")); err != nil || len(away) > 0 {
				t.Errorf("behind the link there are %v, %v", away, err)
			}
			if st, err := os.Stat(filepath.Join(outside, "away")); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("behind the link: %v, %v", st, err)
			}
		})
	}
}

// What has gone of an earlier stream goes where that was unpacked, after all else
// is there, if that is allowed, and nothing else does.
func TestRemoved(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, dir := range []string{filepath.Join(from, "map"), filepath.Join(to, "map/..1/sub"), filepath.Join(to, "other")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(from, "map/new"), filepath.Join(to, "map/old"), filepath.Join(to, "map/..1/sub/x"), filepath.Join(to, "other/y")} {
		if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../other", filepath.Join(to, "map/..1/out")); err != nil {
		t.Fatal(err)
	}
	pack := func(gone ...string) *bytes.Buffer {
		t.Helper()
		var b bytes.Buffer
		if err := PackChanged(open(t, from), "map", "map", gone, &b); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	if err := Unpack(open(t, to), pack("map/old"), Options{}); err == nil {
		t.Error("something was removed that was not asked for")
	}
	for _, name := range []string{".", "..", "../x", "a/../.."} {
		if err := Unpack(open(t, to), pack(name), Options{Remove: true}); err == nil {
			t.Errorf("%q was removed", name)
		}
	}
	if err := Unpack(open(t, to), pack("map/old", "map/..1", "map/never"), Options{Remove: true}); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(to, "*/*"))
	if want := []string{filepath.Join(to, "map/new"), filepath.Join(to, "other/y")}; !slices.Equal(left, want) {
		t.Errorf("left: %q, want %q", left, want)
	}
}

// A file that is mounted where it is cannot be replaced: it is written to.
func TestMountedFile(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	for _, path := range []string{source, target} {
		if err := os.WriteFile(path, []byte("long before"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "target", Typeflag: tar.TypeReg, Size: 5, Mode: 0o644}), second(w.Write([]byte("after"))), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(open(t, dir), &b, Options{}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(source)
	if st, _ := os.Stat(source); string(text) != "after" || err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("it holds %q with mode %v: %v", text, st.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("there are %v", left)
	}
}

func second(_ int, err error) error { return err }

func TestHoles(t *testing.T) {
	u := unpacker{root: open(t, t.TempDir())}
	for _, h := range []tar.Header{
		{Name: "f", Typeflag: tar.TypeGNUSparse, Size: 1 << 50},
		{Name: "f", Typeflag: tar.TypeReg, Size: 1 << 50, PAXRecords: map[string]string{"GNU.sparse.major": "1"}},
	} {
		if err := u.add(&h); err == nil || !strings.Contains(err.Error(), "without holes") {
			t.Errorf("%c: %v", h.Typeflag, err)
		}
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	err := Unpack(open(t, dir), stream(t, tar.Header{Name: "a/f", Typeflag: tar.TypeReg}, tar.Header{Name: "b", Typeflag: tar.TypeReg}),
		Options{Rename: func(name string) string {
			if rest, ok := strings.CutPrefix(name, "a"); ok {
				return "new" + rest
			}
			return ""
		}})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new/f")); err != nil || string(b) != "a/f" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "b")); err == nil {
		t.Error("what had no name was unpacked")
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "d/../l", Linkname: "..", Typeflag: tar.TypeSymlink})
	w.WriteHeader(&tar.Header{Name: "l/f", Typeflag: tar.TypeReg, Size: 1})
	w.Write([]byte("x"))
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		r, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_ = Unpack(r, bytes.NewReader(data), Options{})
		if e, err := os.ReadDir(outside); err != nil || len(e) != 1 {
			t.Fatalf("outside there are %v, %v", e, err)
		}
	})
}

// A link comes after what it leads to, so that nobody finds it leading nowhere.
func TestLinksComeLast(t *testing.T) {
	from := t.TempDir()
	for _, name := range []string{"..a", "..z"} {
		if err := os.Mkdir(filepath.Join(from, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		err := errors.Join(os.Symlink("..z", filepath.Join(from, strings.Repeat("l", i+1))), os.WriteFile(filepath.Join(from, "..z", strings.Repeat("f", i+1)), nil, 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := Pack(open(t, from), ".", "top", &b); err != nil {
		t.Fatal(err)
	}
	links := 0
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			links++
		} else if links > 0 {
			t.Errorf("%s comes after a link", h.Name)
		}
	}
	if links != 20 {
		t.Errorf("%d links", links)
	}
}

// A file that is written to in place stays the one that it is, another is made.
func TestInPlace(t *testing.T) {
	to := t.TempDir()
	old := filepath.Join(to, "old")
	if err := errors.Join(os.WriteFile(old, []byte("longer than its name"), 0o600), os.Symlink("old", filepath.Join(to, "link"))); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := Unpack(open(t, to), stream(t, tar.Header{Name: "old", Typeflag: tar.TypeReg, Mode: 0o640}, tar.Header{Name: "new", Typeflag: tar.TypeReg}, tar.Header{Name: "link", Typeflag: tar.TypeReg}), Options{InPlace: true}); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(held); err != nil || string(b) != "old" {
		t.Errorf("who has it open reads %q, %v", b, err)
	}
	for _, name := range []string{"new", "link"} {
		if st, err := os.Lstat(filepath.Join(to, name)); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if st, err := os.Stat(old); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st, err)
	}
	if left, _ := filepath.Glob(filepath.Join(to, ".skep*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
