package test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"

	"github.com/skep-dev/skep/api"
)

// TestDeployFromEverySource deploys the same image from a real registry on this
// host and from a docker-save tarball, and makes its disk once.
func TestDeployFromEverySource(t *testing.T) {
	d := start(t)
	img := helloImage(t, filepath.Join(d.bin, "skep-hello"))

	pushed := inRegistry(t, "bees/hello:v1", img)
	archive := filepath.Join(t.TempDir(), "hello.tar")
	if err := tarball.WriteToFile(archive, pushed, img); err != nil {
		t.Fatal(err)
	}

	for fn, ref := range map[string]string{"from-registry": pushed.String(), "from-tarball": "docker-archive:" + archive} {
		d.mustCLI("deploy", ref, "--name", fn)
		if a := d.mustGet(fn, "/?name=bee"); !strings.Contains(a.body, "bee") {
			t.Errorf("%s answers %q", fn, a.body)
		}
	}
	if a := d.get("nobody", "/"); a.status != 404 || !strings.Contains(a.body, "from-tarball") {
		t.Errorf("a function that does not exist: %+v", a)
	}
	if _, err := d.cli("deploy", pushed.Context().Name()+":absent", "--name", "absent"); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("deploying a tag that is not there: %v", err)
	}
}

// inRegistry serves an image from a real registry until the test ends.
func inRegistry(t *testing.T, as string, img v1.Image) name.Reference {
	t.Helper()
	conf := &configuration.Configuration{Storage: configuration.Storage{"filesystem": {"rootdirectory": t.TempDir()}}}
	conf.Log.Level, conf.Log.AccessLog.Disabled = "fatal", true
	logrus.SetLevel(logrus.FatalLevel)
	conf.Catalog.MaxEntries = 100
	registry := httptest.NewServer(handlers.NewApp(t.Context(), conf))
	t.Cleanup(registry.Close)
	pushed, err := name.ParseReference(strings.TrimPrefix(registry.URL, "http://") + "/" + as)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(pushed, img); err != nil {
		t.Fatalf("pushing to the registry: %v", err)
	}
	return pushed
}

// file is one of an image.
type file struct {
	name    string
	content []byte
}

// helloImage is an image of one layer with the hello function in it, and other files.
func helloImage(t *testing.T, binary string, more ...file) v1.Image {
	t.Helper()
	b, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []*tar.Header{
		{Name: "app/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range append([]file{{"app/hello", b}}, more...) {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(f.content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config.Entrypoint = []string{"/app/hello"}
	cf.Config.User = "1000:1000"
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestLargeEnvironment runs an image with nearly as much environment as one may
// have, with the most that a function may add, and is refused one with more.
func TestLargeEnvironment(t *testing.T) {
	d := start(t)
	img := helloImage(t, filepath.Join(d.bin, "skep-hello"))
	with := func(variables int) (ref string) {
		conf, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		conf = conf.DeepCopy()
		for i := range variables {
			conf.Config.Env = append(conf.Config.Env, fmt.Sprintf("FROM_IMAGE_%d=%s", i, strings.Repeat("x", 1000)))
		}
		large, err := mutate.ConfigFile(img, conf)
		if err != nil {
			t.Fatal(err)
		}
		tag, err := name.NewTag("large:v1")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "large.tar")
		if err := tarball.WriteToFile(path, tag, large); err != nil {
			t.Fatal(err)
		}
		return "docker-archive:" + path
	}
	own := strings.Repeat("<", 60_000) // six bytes each, as JSON has it
	d.mustCLI("deploy", with(1000), "--name", "large", "--env", "FROM_FUNCTION="+own)
	for range 2 { // from its snapshot, and warm
		a := d.mustGet("large", "/env")
		if n := strings.Count(a.body, "FROM_IMAGE_"); n != 1000 || !strings.Contains(a.body, "FROM_FUNCTION="+own+"\n") {
			t.Errorf("it has %d variables of its image's, %d bytes", n, len(a.body))
		}
	}
	_, err := d.client.Deploy(d.ctx(time.Minute), api.Function{Name: "larger", Image: with(1100)}, nil)
	var e *api.Error
	if !errors.As(err, &e) || e.Status != http.StatusRequestEntityTooLarge || !strings.Contains(e.Message, "1048576 are allowed") {
		t.Errorf("an image with more: %v", err)
	}
}
