package shimtest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Names of images that tests use.
const (
	ProbeImage = "test.skep.invalid/probe:v1"
	PauseImage = "test.skep.invalid/pause:v1"
)

// Probe is an image with the program of shim/shimtest/probe as /bin/probe, and
// under the name of each of its commands: an image to run things in.
func Probe(t testing.TB) v1.Image {
	t.Helper()
	dir, err := program()
	builtOnce = true
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	files := []File{
		{Name: "bin/probe", Mode: 0o755, Content: string(b)},
		{Name: "etc/passwd", Content: "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"},
		{Name: "etc/group", Content: "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"},
		{Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700}, {Name: "home/user/", Mode: 0o755},
		{Name: "proc/"}, {Name: "sys/"}, {Name: "dev/"},
	}
	for _, c := range Commands {
		files = append(files, File{Name: "bin/" + c, Link: "probe"})
	}
	return Image(t, v1.Config{Entrypoint: []string{"/bin/probe"}, Env: []string{"PATH=/bin"}}, files)
}

// Commands of the probe.
var Commands = []string{"echo", "cat", "true", "false", "env", "sleep", "id", "hostname", "tty", "size", "exit", "serve", "rigid", "pause", "read", "write", "burst", "eat", "hold", "burn", "random", "trap", "get", "serves", "mounts", "cwd", "orphan", "tar"}

// File of an image. A name that ends with a slash is a directory.
type File struct {
	Name, Link, Content string
	Hard                bool  // Link is a file of the image's, and this another name of it
	Mode                int64 // 0: 0644, of a directory 0755
	UID, GID            int
}

// Image makes one of layers.
func Image(t testing.TB, config v1.Config, layers ...[]File) v1.Image {
	t.Helper()
	img := empty.Image
	for _, files := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			if err := w.WriteHeader(f.header()); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, f.Content); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

func (f File) header() *tar.Header {
	h := &tar.Header{Name: f.Name, Typeflag: tar.TypeReg, Mode: f.Mode, Size: int64(len(f.Content)), Uid: f.UID, Gid: f.GID}
	switch {
	case f.Hard:
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, f.Link, 0
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, f.Link, 0o777, 0
	case f.Name[len(f.Name)-1] == '/':
		h.Typeflag = tar.TypeDir
		if h.Mode == 0 {
			h.Mode = 0o755
		}
	case h.Mode == 0:
		h.Mode = 0o644
	}
	return h
}

func writeArchive(path, ref string, img v1.Image) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, img)
}

// Has tells whether a list of processes has one of that name.
func Has(list []Process, name string) bool {
	return slices.ContainsFunc(list, func(p Process) bool { return p.Name == name })
}
