package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// elfKernel makes a small ELF file, with or without the PVH note.
func elfKernel(pvh bool) []byte {
	var b bytes.Buffer
	le := binary.LittleEndian
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	le.PutUint16(head[16:], 2)    // executable
	le.PutUint16(head[18:], 0x3e) // x86-64
	le.PutUint32(head[20:], 1)
	le.PutUint64(head[32:], 64) // program headers
	le.PutUint16(head[52:], 64)
	le.PutUint16(head[54:], 56)
	le.PutUint16(head[56:], 1)
	le.PutUint16(head[58:], 64)
	b.Write(head)
	note := []byte("\x04\x00\x00\x00\x03\x00\x00\x00\x06\x00\x00\x00Xen\x00abc\x00")
	if pvh {
		note = append(note, "\x04\x00\x00\x00\x08\x00\x00\x00\x12\x00\x00\x00Xen\x0001234567"...)
	}
	prog := make([]byte, 56)
	le.PutUint32(prog, 4) // note
	le.PutUint64(prog[8:], 64+56)
	le.PutUint64(prog[32:], uint64(len(note)))
	b.Write(prog)
	b.Write(note)
	b.Write(bytes.Repeat([]byte("kernel "), 10_000))
	return b.Bytes()
}

// bzImage packs a payload as the kernel's build does: its size follows.
func bzImage(payload []byte, size int) []byte {
	const sects = 3
	b := make([]byte, (sects+1)*sector+100)
	b[setupSects] = sects
	copy(b[setupMagic:], "HdrS")
	le := binary.LittleEndian
	le.PutUint16(b[setupVersion:], 0x020f)
	le.PutUint32(b[payloadOffset:], 100)
	le.PutUint32(b[payloadLength:], uint32(len(payload)+4))
	b = append(b, payload...)
	b = le.AppendUint32(b, uint32(size))
	return append(b, "what follows"...)
}

func pack(t testing.TB, kind string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "xz":
		w, err = xz.NewWriter(&b)
	case "lz4":
		z := lz4.NewWriter(&b)
		err = z.Apply(lz4.LegacyOption(true))
		w = z
	}
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtract(t *testing.T) {
	want := elfKernel(true)
	for _, kind := range []string{"gzip", "zstd", "xz", "lz4"} {
		image := bzImage(pack(t, kind, want), len(want))
		if kind == "gzip" { // which has its size at its end anyway
			packed := pack(t, kind, want)
			image = bzImage(packed[:len(packed)-4], len(want))
		}
		got, err := extract(image)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", kind, len(got), len(want), err)
		}
		if _, err := extract(image[:len(image)-len(want)/100]); err == nil {
			t.Errorf("%s: a truncated image is taken", kind)
		}
	}
	for name, image := range map[string][]byte{
		"empty":        {},
		"no ELF":       bzImage(pack(t, "zstd", []byte("hello, this is no kernel")), 24),
		"unknown":      bzImage([]byte("a payload in an unknown format"), 10),
		"old protocol": append(append([]byte(nil), bzImage(nil, 0)[:setupVersion]...), make([]byte, 100)...),
	} {
		if _, err := extract(image); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzExtract(f *testing.F) {
	for _, kind := range []string{"gzip", "zstd", "lz4"} {
		f.Add(bzImage(pack(f, kind, elfKernel(true)), 70_000))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := extract(b); err == nil && !isELF(out) {
			t.Error("no ELF file")
		}
		hasPVH(b)
	})
}

// deb packs files as a Debian package; a name that ends in "/" is a directory,
// a value that begins with "->" a link.
func deb(t testing.TB, kind string, files [][2]string) []byte {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, f := range files {
		h := tar.Header{Name: f[0], Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(f[1]))}
		body := f[1]
		if target, ok := strings.CutPrefix(f[1], "->"); ok {
			h.Typeflag, h.Linkname, h.Size, body = tar.TypeSymlink, target, 0, ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed, ext := data.Bytes(), map[string]string{"": "", "gzip": ".gz", "zstd": ".zst", "xz": ".xz"}[kind]
	if kind != "" {
		packed = pack(t, kind, packed)
	}
	out := []byte("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", []byte("odd")}, {"data.tar" + ext, packed}} {
		out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		out = append(out, m.data...)
		if len(m.data)%2 == 1 {
			out = append(out, '\n')
		}
	}
	return out
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImportPackages(t *testing.T) {
	inner := elfKernel(true)
	image := bzImage(pack(t, "lz4", inner), len(inner))
	for _, kind := range []string{"", "gzip", "zstd", "xz"} {
		one := deb(t, kind, [][2]string{
			{"./boot/vmlinuz-6.9-x", string(image)}, {"./boot/config-6.9-x", "CONFIG"},
			{"./lib/modules/6.9-x/build", "->/usr/src"},
			{"./usr/share/doc/changelog", "…"},
		})
		two := deb(t, kind, [][2]string{
			{"./lib/modules/6.9-x/kernel/fs/a.ko.zst", "a module"}, {"./lib/modules/6.9-x/modules.builtin", "kernel/b.ko\n"},
			{"../../../lib/modules/6.9-x/kernel/../kernel/c.ko", "another"},
		})
		dir := t.TempDir()
		opts := ImportOptions{Packages: []string{write(t, "one.deb", one), write(t, "two.deb", two)}}
		k, err := Import(t.Context(), dir, opts)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(k.Path); !bytes.Equal(got, inner) || filepath.Base(k.Path) != "vmlinux" || k.Release != "6.9-x" {
			t.Errorf("imported %+v", k)
		}
		for name, want := range map[string]string{"kernel/fs/a.ko.zst": "a module", "modules.builtin": "kernel/b.ko\n", "kernel/c.ko": "another"} {
			if got, _ := os.ReadFile(filepath.Join(k.Modules, name)); string(got) != want {
				t.Errorf("%s is %q", name, got)
			}
		}
		if again, err := Import(t.Context(), dir, opts); err != nil || again != k {
			t.Errorf("again: %+v, %v", again, err)
		}
		if d, err := Default(dir); err != nil || d != k {
			t.Errorf("the default is %+v, %v", d, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	image := string(bzImage([]byte("unknown compression, which boots all the same"), 1))
	for name, data := range map[string][]byte{
		"no package":  []byte("hello"),
		"no data":     []byte("!<arch>\n"),
		"no kernel":   deb(t, "", [][2]string{{"./boot/other", "x"}}),
		"two kernels": deb(t, "", [][2]string{{"./boot/vmlinuz-1", image}, {"./boot/vmlinuz-2", image}}),
		"no image":    deb(t, "", [][2]string{{"./boot/vmlinuz-1", "text"}}),
		"truncated":   deb(t, "zstd", [][2]string{{"./boot/vmlinuz-1", image}})[:300],
	} {
		dir := t.TempDir()
		if k, err := Import(t.Context(), dir, ImportOptions{Packages: []string{write(t, "p.deb", data)}}); err == nil {
			t.Errorf("%s: imported as %+v", name, k)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
}

// What is too large is refused, not cut.
func TestImportRefusesLargeModules(t *testing.T) {
	modules, dir := filepath.Join(t.TempDir(), "6.1-y"), t.TempDir()
	large := filepath.Join(modules, "kernel/large.ko")
	if err := errors.Join(os.MkdirAll(filepath.Dir(large), 0o755), os.WriteFile(large, nil, 0o644), os.Truncate(large, moduleLimit+1)); err != nil {
		t.Fatal(err)
	}
	_, err := Import(t.Context(), dir, ImportOptions{Image: write(t, "image", elfKernel(true)), Modules: modules})
	if err == nil || !strings.Contains(err.Error(), "large.ko has 67108865 bytes") {
		t.Errorf("%v, want it to name the module and its size", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for want, sum := range map[string]tally{"bytes": {bytes: treeLimit}, "files": {files: fileLimit}} {
		if err := sum.add("m.ko", 1, moduleLimit); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one about %s", err, want)
		}
	}
}

func TestImportImage(t *testing.T) {
	modules := filepath.Join(t.TempDir(), "6.1-y")
	if err := os.MkdirAll(filepath.Join(modules, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(modules, "kernel/m.ko"), []byte("m"), 0o644); err != nil {
		t.Fatal(err)
	}
	plain := elfKernel(false)
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"vmlinux":         {plain, "vmlinux"},
		"cannot enter it": {bzImage(pack(t, "zstd", plain), len(plain)), "vmlinuz"},
		"cannot unpack":   {bzImage([]byte("unknown compression here"), 1), "vmlinuz"},
	} {
		dir := t.TempDir()
		k, err := Import(t.Context(), dir, ImportOptions{Image: write(t, "image", c.image), Modules: modules})
		if err != nil || filepath.Base(k.Path) != c.want || k.Release != "6.1-y" {
			t.Errorf("%s: %+v, %v; want %s", name, k, err, c.want)
		}
		if _, err := os.Stat(filepath.Join(k.Modules, "kernel/m.ko")); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(k.Path, append(c.image, 'x'), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Default(dir); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("a damaged image: %v", err)
		}
	}
}

func TestDefault(t *testing.T) {
	dir := t.TempDir()
	if _, err := Default(filepath.Join(dir, "none")); !errors.Is(err, ErrNone) {
		t.Errorf("error %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "not-ours", "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Default(dir); !errors.Is(err, ErrNone) {
		t.Errorf("error %v", err)
	}
	first, err := Import(t.Context(), dir, ImportOptions{Image: write(t, "a", elfKernel(true))})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Millisecond)
	second, err := Import(t.Context(), dir, ImportOptions{Image: write(t, "b", elfKernel(false))})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := Default(dir); err != nil || k != second || k == first {
		t.Errorf("the default is %+v, %v; want %+v", k, err, second)
	}
	for _, bad := range []string{`{"format":2}`, `{"format":1,"image":"../x"}`, `{"format":1,"image":"x","evil":1}`, `{`} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(second.Path), manifestName), []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Default(dir); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("manifest %s: %v", bad, err)
		}
	}
}

func TestDependencies(t *testing.T) {
	out := "linux-image-cloud-amd64\n |Depends: linux-image-6.1.0-56-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64-unsigned\n"
	if got := dependencies(out); len(got) != 1 || got[0] != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("%q", got)
	}
	if got := dependencies("x\n  Depends: libc6\n"); got != nil {
		t.Errorf("%q", got)
	}
}

func FuzzDeb(f *testing.F) {
	f.Add(deb(f, "zstd", [][2]string{{"./boot/vmlinuz-1", "x"}, {"../lib/modules/1/kernel/a.ko", "y"}}))
	f.Add(deb(f, "", [][2]string{{"./boot/vmlinuz-1", "x"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, done, err := debData(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer done()
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err != nil {
				return
			}
			to, _, ok := destination(h)
			if ok && !filepath.IsLocal(to) {
				t.Fatalf("%q would go to %q", h.Name, to)
			}
		}
	})
}
