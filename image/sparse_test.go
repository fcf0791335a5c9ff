package image

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// TestSparseFilesStayHoles has a file of 64 MiB with 8 KiB in it go through each
// kind of archive: the disk takes the room of what is in it.
func TestSparseFilesStayHoles(t *testing.T) {
	testenv.Need(t, "mkfs")
	dir := t.TempDir()
	want := make([]byte, 64<<20)
	copy(want[10<<20:], bytes.Repeat([]byte("bees"), 1024))
	copy(want[40<<20+100:], bytes.Repeat([]byte("honey"), 800))
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(root, "db"))
	if err != nil {
		t.Fatal(err)
	}
	holes := &sparseFile{ctx: t.Context(), f: f}
	if _, err := io.Copy(holes, bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(holes.finish(), f.Close(), os.WriteFile(filepath.Join(root, ConfigFile), []byte(`{"entrypoint":["/db"]}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := occupied(t, f.Name()); got > 64<<10 {
		t.Fatalf("the file itself takes %d bytes", got)
	}
	refs := map[string]string{"directory": "dir:" + root}
	for name, args := range map[string][]string{
		"gnu sparse": {"-S", "--format=gnu"}, "pax sparse": {"-S", "--format=posix"}, "zeros": {"--format=posix"},
	} {
		layer, err := exec.Command("tar", append(args, "-C", root, "-c", "db")...).Output()
		if err != nil {
			t.Fatalf("tar %v: %v", args, err)
		}
		if sparse := args[0] == "-S"; sparse != (len(layer) < 1<<20) {
			t.Fatalf("%s: the layer has %d bytes", name, len(layer))
		}
		refs[name], _ = writeLayout(t, imageOf(t, layer))
	}
	for name, ref := range refs {
		img, err := open(t, Options{}).Fetch(t.Context(), ref, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkDisk(t, img.Disk)
		if inspect(t, img.Disk, "cat /db") != string(want) {
			t.Errorf("%s: the file is not what it was", name)
		}
		got := occupied(t, img.Disk)
		t.Logf("%s: %d bytes long, takes %d", name, img.DiskBytes, got)
		if got > 1<<20 || img.DiskBytes < 64<<20 {
			t.Errorf("%s: the disk takes %d of its %d bytes", name, got, img.DiskBytes)
		}
	}
}

func occupied(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestSparseFile compares it with a plain one, under the same calls.
func TestSparseFile(t *testing.T) {
	dir := t.TempDir()
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		plain, err := os.Create(filepath.Join(dir, "plain"))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, "sparse"))
		if err != nil {
			t.Fatal(err)
		}
		s := &sparseFile{ctx: t.Context(), f: f}
		for range 40 {
			switch r.IntN(4) {
			case 0:
				at := r.Int64N(100_000)
				if _, err := plain.Seek(at, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				if got, err := s.Seek(at, io.SeekStart); got != at || err != nil {
					t.Fatal(got, err)
				}
			case 1:
				a, b := make([]byte, r.IntN(20_000)), make([]byte, 20_000)
				n, _ := io.ReadFull(plain, a)
				m, err := io.ReadFull(s, b[:len(a)])
				if n != m || !bytes.Equal(a[:n], b[:m]) {
					t.Fatalf("seed %d: read %d bytes, %v: want %d", seed, m, err, n)
				}
			default:
				p := make([]byte, r.IntN(30_000))
				for range r.IntN(4) * min(len(p), 1) {
					p[r.IntN(len(p))] = 1
				}
				if _, err := plain.Write(p); err != nil {
					t.Fatal(err)
				}
				if n, err := s.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
			}
		}
		if err := errors.Join(s.finish(), plain.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		a, _ := os.ReadFile(plain.Name())
		b, _ := os.ReadFile(f.Name())
		if !bytes.Equal(a, b) {
			t.Fatalf("seed %d: %d bytes differ from the %d of a plain file", seed, len(b), len(a))
		}
	}
}
