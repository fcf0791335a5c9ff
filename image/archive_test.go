package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

func TestArchives(t *testing.T) {
	dir := t.TempDir()
	img := imageOf(t, layerOf(t, file("serve", "one")), layerOf(t, file("serve", "two")))
	docker := filepath.Join(dir, "docker.tar")
	tag, err := name.NewTag("localhost:5000/team/hello:v1")
	if err != nil {
		t.Fatal(err)
	}
	other := imageOf(t, layerOf(t, file("serve", "other")))
	otherTag, err := name.NewTag("other:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	many := filepath.Join(dir, "many.tar")
	if err := tarball.MultiRefWriteToFile(many, map[name.Reference]v1.Image{tag: img, otherTag: other}); err != nil {
		t.Fatal(err)
	}
	_, lay := writeLayout(t, img)
	oci := filepath.Join(dir, "oci.tar")
	tarDir(t, lay, oci)
	tgz, tzst := compressFiles(t, docker)
	junk := filepath.Join(dir, "junk.tar")
	if err := os.WriteFile(junk, layerOf(t, file("a", "b")), 0o600); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		docker: "two", "docker-archive:" + docker: "two", "docker-archive:" + docker + ":localhost:5000/team/hello:v1": "two",
		"docker-archive:" + many + ":other:v1": "other", oci: "two", "oci-archive:" + oci: "two", tgz: "two", tzst: "two",
		"docker-archive:" + many: "!single", "docker-archive:" + docker + ":absent": "!absent", junk: "!neither",
		filepath.Join(dir, "absent.tar"): "!no such file", "oci-archive:" + junk: "!layout", "docker-archive:" + junk: "!manifest.json",
	} {
		s := open(t, Options{})
		got, err := s.Fetch(t.Context(), ref, nil)
		if bad, ok := strings.CutPrefix(want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), bad) {
				t.Errorf("%s: error %v: want one with %q", ref, err, bad)
			}
			nothingLeft(t, s)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if b := inspect(t, got.Disk, "cat /serve"); b != want || len(got.Config.Entrypoint) != 1 {
			t.Errorf("%s holds %q, %+v", ref, b, got.Config)
		}
		if entries, _ := os.ReadDir(s.dir); len(entries) != 1 {
			t.Errorf("%s left %v", ref, entries)
		}
	}
}

func tarDir(t *testing.T, dir, out string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), os.WriteFile(out, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func compressFiles(t *testing.T, path string) (gz, zst string) {
	t.Helper()
	plain, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var g, z bytes.Buffer
	gw := gzip.NewWriter(&g)
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gw, zw} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	gz, zst = path+".gz", path+".zst"
	if err := errors.Join(os.WriteFile(gz, g.Bytes(), 0o600), os.WriteFile(zst, z.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return gz, zst
}

// TestBadArchives are tar files that mean harm.
func TestBadArchives(t *testing.T) {
	link := func(name, to string) entry {
		return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
	}
	index := file("index.json", `{"schemaVersion":2,"manifests":[]}`)
	for _, c := range []struct {
		name, form, want string
		es               []entry
	}{
		{"a link to itself", "docker-archive:", "", []entry{link("manifest.json", "manifest.json")}},
		{"links in a loop", "docker-archive:", "", []entry{link("manifest.json", "a"), link("a", "manifest.json")}},
		{"empty manifest", "docker-archive:", "", []entry{file("manifest.json", "[]")}},
		{"null manifest", "docker-archive:", "", []entry{file("manifest.json", "[null]")}},
		{"manifest of nothing", "docker-archive:", "", []entry{file("manifest.json", `[{"Config":"c","Layers":["l"]}]`)}},
		{"configuration of nothing", "docker-archive:", "no layers", []entry{file("manifest.json", `[{"Config":"c","Layers":["l"]}]`), file("c", "{}"), file("l", "")}},
		{"escape", "oci-archive:", "leads out", []entry{file("../oci-layout", "{}"), index}},
		{"link out", "oci-archive:", "", []entry{link("blobs", "/etc"), file("oci-layout", "{}"), file("blobs/sha256/x", ""), index}},
		{"empty index", "oci-archive:", "no image", []entry{file("oci-layout", "{}"), index}},
		{"no index", "oci-archive:", "index.json", []entry{file("oci-layout", "{}")}},
		{"null index", "oci-archive:", "", []entry{file("oci-layout", "{}"), file("index.json", "null")}},
		{"manifest that is not there", "oci-archive:", "no such file", []entry{file("oci-layout", "{}"),
			file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.tar")
			if err := os.WriteFile(path, layerOf(t, c.es...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, Options{})
			_, err := s.Fetch(t.Context(), c.form+path, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v: want one with %q", err, c.want)
			}
			if !hasKind(err) {
				t.Errorf("error %v does not say that it is the image's", err)
			}
			nothingLeft(t, s)
		})
	}
}

// TestLayoutIndex has an index in the layout's index, and tags.
func TestLayoutIndex(t *testing.T) {
	mine := imageOf(t, layerOf(t, file("serve", "mine")))
	theirs := platformed(t, imageOf(t, layerOf(t, file("serve", "theirs"))), "linux", "s390x")
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: theirs, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	other := imageOf(t, layerOf(t, file("serve", "other")))
	if err := errors.Join(p.AppendIndex(idx, layout.WithAnnotations(map[string]string{tagAnnotation: "v1"})),
		p.AppendImage(other, layout.WithAnnotations(map[string]string{tagAnnotation: "v2"})),
		p.AppendImage(theirs, layout.WithAnnotations(map[string]string{tagAnnotation: "v3"}))); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{})
	for tag, want := range map[string]string{":v1": "mine", ":v2": "other"} {
		img, err := s.Fetch(t.Context(), "oci:"+dir+tag, nil)
		if err != nil || inspect(t, img.Disk, "cat /serve") != want {
			t.Errorf("%s: %v, %+v", tag, err, img)
		}
	}
	for tag, want := range map[string]string{"": "name one by its tag", ":v3": "s390x", ":v4": `no image with tag "v4"`} {
		if _, err := s.Fetch(t.Context(), "oci:"+dir+tag, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v: want one with %q", tag, err, want)
		}
	}
}
