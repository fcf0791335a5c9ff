package test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestRandomnessOfClones runs the Python example of docs/clones.md with and
// without its clone hook: what repeats in clones is what the document says.
func TestRandomnessOfClones(t *testing.T) {
	testenv.Need(t, "mmdebstrap")
	d := start(t)
	image := pythonExample(t)
	for _, c := range []struct {
		name         string
		flags        []string
		same, differ []string
	}{
		{"without", nil, []string{"random", "openssl", "hash"}, []string{"kernel", "uuid"}},
		{"with", []string{"--clone-hook", "/clone"}, []string{"hash"}, []string{"random", "openssl", "kernel", "uuid"}},
	} {
		d.mustCLI(append([]string{"deploy", image, "--name", c.name}, c.flags...)...)
		var clones [2]map[string]any
		for i := range clones {
			a := d.invoke(api.InvokeRequest{Function: c.name, Start: api.StartRestore})
			if a.err != nil || a.status != 200 || a.header.Get(api.HeaderStart) != string(api.StartRestore) {
				t.Fatalf("%s hook: %+v", c.name, a)
			}
			if err := json.Unmarshal([]byte(a.body), &clones[i]); err != nil {
				t.Fatalf("%s hook: %v: %s", c.name, err, a.body)
			}
		}
		for _, what := range c.same {
			if a, b := clones[0][what], clones[1][what]; a == nil || a != b {
				t.Errorf("%s hook, %s: %v and %v, want the same, as docs/clones.md says", c.name, what, a, b)
			}
		}
		for _, what := range c.differ {
			if a, b := clones[0][what], clones[1][what]; a == nil || a == b {
				t.Errorf("%s hook, %s: both clones say %v", c.name, what, a)
			}
		}
	}
}

// pythonExample makes an image of the example: that of a built-in function, with
// another server.
func pythonExample(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := functions.Build(t.Context(), filepath.Join(cache, "skep", "functions"), "helloworld", func(step string) { t.Log(step) })
	if err != nil {
		t.Fatal(err)
	}
	server, err := os.ReadFile("../examples/clones/python/server.py")
	if err != nil {
		t.Fatal(err)
	}
	from, err := layout.ImageIndexFromPath(strings.TrimPrefix(ref, "oci:"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := from.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := from.Image(index.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "app/server.py", Mode: 0o644, Size: int64(len(server))})
	w.Write(server)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, static.NewLayer(files.Bytes(), types.OCIUncompressedLayer)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = to.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}
