package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/testenv"
)

// entry is a file of a test's layer. A Typeflag of zero is a regular file.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}, body}
}

func layerOf(t testing.TB, es ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range es {
		e.Size = int64(len(e.body))
		e.ModTime = time.Unix(1e9, 0)
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(e.body))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, l := range layers {
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(l, types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", "amd64"
	conf.Config.Entrypoint = []string{"/serve"}
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	return img
}

// writeLayout writes an image as an OCI layout and returns its reference.
func writeLayout(t testing.TB, img v1.Image) (ref, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir, dir
}

func open(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// nothingLeft checks that a failed fetch left nothing behind.
func nothingLeft(t *testing.T, s *Store) {
	t.Helper()
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left in the store: %v %v", left, err)
	}
}

// inspect asks debugfs, which reads the disk as a kernel would.
func inspect(t *testing.T, disk, command string) string {
	t.Helper()
	testenv.Need(t, "mkfs")
	out, err := exec.Command("debugfs", "-R", command, disk).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", command, err)
	}
	return string(out)
}

// checkDisk runs e2fsck.
func checkDisk(t *testing.T, disk string) {
	t.Helper()
	testenv.Need(t, "mkfs")
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v:\n%s", err, out)
	}
}

func TestLayersOnTopOfEachOther(t *testing.T) {
	testenv.Need(t, "mkfs")
	long := strings.Repeat("n", 200) + "/" + strings.Repeat("m", 200)
	lower := layerOf(t,
		file("gone", "x"), file("kept", "lower"), file("dir/a", "a"), file("dir/b", "b"),
		file("hidden/old", "old"), file("becomes-dir", "x"), file("was-dir/x", "x"),
		file("link-target", "linked"), entry{tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: "link-target"}, ""},
		entry{tar.Header{Name: "suid", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 7, Gid: 70000}, "s"},
		entry{tar.Header{Name: "cap", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.bee": "honey"}}, "c"},
		entry{tar.Header{Name: "sym", Typeflag: tar.TypeSymlink, Linkname: "/kept"}, ""},
		entry{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
		file(long, "long"))
	upper := layerOf(t,
		file(".wh.gone", ""), file("dir/.wh.a", ""), file("hidden/.wh..wh..opq", ""), file("hidden/new", "new"),
		entry{tar.Header{Name: "becomes-dir/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}, file("becomes-dir/y", "y"),
		file("was-dir", "file now"), file(".wh.link-target", ""), file("kept", "upper"))
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, lower, upper))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, img.Disk)
	for path, want := range map[string]string{
		"/kept": "upper", "/dir/b": "b", "/hidden/new": "new", "/becomes-dir/y": "y", "/was-dir": "file now",
		"/link": "linked", "/suid": "s", "/" + long: "long", "/cap": "c",
	} {
		if got := inspect(t, img.Disk, "cat "+path); got != want {
			t.Errorf("%.40s holds %q, want %q", path, got, want)
		}
	}
	listing := inspect(t, img.Disk, "ls -p /") + inspect(t, img.Disk, "ls -p /dir") + inspect(t, img.Disk, "ls -p /hidden")
	for _, gone := range []string{"/gone/", "/a/", "/old/", "/link-target/", ".wh."} {
		if strings.Contains(listing, gone) {
			t.Errorf("%s is there:\n%s", gone, listing)
		}
	}
	for command, want := range map[string]string{
		"stat /suid": "04755", "stat /sym": "/kept", "ea_get /cap user.bee": "honey", "stat /null": "character special",
	} {
		if got := inspect(t, img.Disk, command); !strings.Contains(got, want) {
			t.Errorf("%s lacks %q:\n%s", command, want, got)
		}
	}
	if st := inspect(t, img.Disk, "stat /suid"); !strings.Contains(st, "70000") {
		t.Errorf("the owner is not kept:\n%s", st)
	}
}

func TestSameImageSameDisk(t *testing.T) {
	img := imageOf(t, layerOf(t, file("a/b/c", "x"), file("serve", "#!")))
	var digests []string
	for range 2 {
		s := open(t, Options{})
		ref, _ := writeLayout(t, img)
		got, err := s.Fetch(t.Context(), ref, nil)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, got.DiskDigest)
	}
	if digests[0] != digests[1] {
		t.Errorf("one image gives two disks: %v", digests)
	}
}

func TestTwoFetchesOneBuild(t *testing.T) {
	s := open(t, Options{})
	img := imageOf(t, layerOf(t, file("serve", strings.Repeat("x", 1<<20))))
	ref1, _ := writeLayout(t, img)
	ref2, _ := writeLayout(t, img)
	var pulled atomic.Int64
	size, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	want, err := size[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	var last sync.Map
	var wg sync.WaitGroup
	for _, ref := range []string{ref1, ref2, ref1, ref2} {
		wg.Go(func() {
			var before int64
			if _, err := s.Fetch(t.Context(), ref, func(stage string, done, _ int64) {
				if stage == "pull" {
					pulled.Add(done - before)
					before = done
				}
			}); err != nil {
				t.Error(err)
			}
			last.Store(ref, true)
		})
	}
	wg.Wait()
	if pulled.Load() != want {
		t.Errorf("%d bytes were read, the layer has %d", pulled.Load(), want)
	}
}

func TestBadImages(t *testing.T) {
	good := layerOf(t, file("serve", "#!"))
	for _, c := range []struct {
		name, want string
		opts       Options
		img        func(t *testing.T) string
	}{
		{"escape", "leads out of the root", Options{}, func(t *testing.T) string {
			ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("../../etc/evil", "x"))))
			return ref
		}},
		{"link to nowhere", "no file", Options{}, func(t *testing.T) string {
			ref, _ := writeLayout(t, imageOf(t, layerOf(t, entry{tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "absent"}, ""})))
			return ref
		}},
		{"too large", "limit", Options{MaxBytes: 4096}, func(t *testing.T) string {
			ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("big", strings.Repeat("x", 8192)))))
			return ref
		}},
		{"truncated layer", "digest", Options{}, func(t *testing.T) string {
			ref, dir := writeLayout(t, imageOf(t, good))
			damage(t, dir, func(b []byte) []byte { return b[:len(b)/2] })
			return ref
		}},
		{"altered layer", "digest", Options{}, func(t *testing.T) string {
			ref, dir := writeLayout(t, imageOf(t, good))
			damage(t, dir, func(b []byte) []byte { b[len(b)/3] ^= 1; return b })
			return ref
		}},
		{"no layout", "layout", Options{}, func(t *testing.T) string { return "oci:" + t.TempDir() }},
		{"no config", "skep-image.json", Options{}, func(t *testing.T) string { return "dir:" + t.TempDir() }},
		{"no reference", "reference", Options{}, func(*testing.T) string { return "" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, c.opts)
			_, err := s.Fetch(t.Context(), c.img(t), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v: want one with %q", err, c.want)
			}
			nothingLeft(t, s)
		})
	}
}

// damage changes the largest blob of a layout, which is its layer.
func damage(t *testing.T, dir string, f func([]byte) []byte) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var largest string
	var data []byte
	for _, p := range blobs {
		if b, err := os.ReadFile(p); err == nil && len(b) > len(data) {
			largest, data = p, b
		}
	}
	if err := os.WriteFile(largest, f(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	testenv.Need(t, "mkfs")
	dir := t.TempDir()
	for name, body := range map[string]string{"serve": "#!", "etc/x": "y", ConfigFile: `{"entrypoint":["/serve"],"env":["A=b"]}`} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "serve"), filepath.Join(dir, "serve2")); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{})
	img, err := s.Fetch(t.Context(), "dir:"+dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Config.Entrypoint) != 1 || inspect(t, img.Disk, "cat /serve2") != "#!" || strings.Contains(inspect(t, img.Disk, "ls -p /"), ConfigFile) {
		t.Errorf("image %+v:\n%s", img, inspect(t, img.Disk, "ls -p /"))
	}
	again, err := s.Fetch(t.Context(), "dir:"+dir, nil)
	if err != nil || again.Digest != img.Digest {
		t.Errorf("the same directory again: %v, %s and %s", err, again.Digest, img.Digest)
	}
}

func TestDamagedDiskIsRefusedAndMadeAgain(t *testing.T) {
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", "#!"))))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(img.Disk, 0o600); err != nil { // a touched stamp alone is no damage
		t.Fatal(err)
	}
	if _, err := s.Get(img.Digest); err != nil {
		t.Errorf("a disk whose content is right: %v", err)
	}
	b, err := os.ReadFile(img.Disk)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(img.Disk, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(img.Digest); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged disk: %v", err)
	}
	if _, err := s.Fetch(t.Context(), ref, nil); err != nil {
		t.Errorf("fetching it again: %v", err)
	}
	if _, err := s.Get(img.Digest); err != nil {
		t.Errorf("after that: %v", err)
	}
	if err := s.Remove(img.Digest); err != nil {
		t.Error(err)
	}
	nothingLeft(t, s)
	if _, err := s.Get("sha256:../../etc"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a digest that is a path: %v", err)
	}
}

func TestOpenRemovesHalfMadeOnly(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{atomicfile.TempPrefix + "x", "foreign"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "foreign" {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestCancel(t *testing.T) {
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", strings.Repeat("x", 4<<20)))))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Fetch(ctx, ref, func(string, int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, s)
}

// A layer of many entries is left off at the next.
func TestCancelBetweenEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(path, layerOf(t, file("a", ""), file("b", ""), file("c", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	err := eachEntry(ctx, path, func(int, *tar.Header, io.Reader) error {
		seen++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || seen != 1 {
		t.Errorf("%d entries, %v; want one and that it is cancelled", seen, err)
	}
}
