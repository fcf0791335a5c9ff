package image

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sirupsen/logrus"
)

// registry is a real one on loopback, behind middle, which may be nil.
func registry(t *testing.T, middle func(http.Handler) http.Handler) (host string) {
	t.Helper()
	logrus.SetOutput(io.Discard)
	conf := &configuration.Configuration{Storage: configuration.Storage{"inmemory": configuration.Parameters{}}}
	conf.HTTP.Secret = "for tests"
	conf.Catalog.MaxEntries = 10
	var h http.Handler = handlers.NewApp(t.Context(), conf)
	if middle != nil {
		h = middle(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func push(t *testing.T, ref string, what any, opts ...remote.Option) {
	t.Helper()
	n, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(n, w, opts...)
	case v1.ImageIndex:
		err = remote.WriteIndex(n, w, opts...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// compressed is a layer as registries have it.
func compressed(t *testing.T, kind types.MediaType, plain []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(plain)), nil }, tarball.WithMediaType(kind))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFromRegistry(t *testing.T) {
	var blobs atomic.Int64
	host := registry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				blobs.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	mine := imageOf(t, layerOf(t, file("serve", "mine")))
	mine, err := mutate.AppendLayers(mine, compressed(t, types.OCILayer, layerOf(t, file("two", "gzip"))))
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/team/hello:v1", mine)
	push(t, host+"/other/name:v2", mine)
	theirs := platformed(t, imageOf(t, layerOf(t, file("serve", "theirs"))), "linux", "s390x")
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: theirs, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	push(t, host+"/team/many:v1", idx)
	push(t, host+"/team/theirs:v1", theirs)

	s := open(t, Options{})
	var last, total int64
	img, err := s.Fetch(t.Context(), host+"/team/hello:v1", func(stage string, done, of int64) {
		if stage == "pull" {
			last, total = max(last, done), of
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("told of %d bytes of %d", last, total)
	}
	if d, _ := mine.Digest(); img.Digest != d.String() {
		t.Errorf("the image is %s: want %s", img.Digest, d)
	}
	if got := inspect(t, img.Disk, "cat /serve") + inspect(t, img.Disk, "cat /two"); got != "minegzip" {
		t.Errorf("the disk holds %q", got)
	}
	before := blobs.Load()
	for _, ref := range []string{host + "/other/name:v2", host + "/team/many:v1", host + "/team/hello@" + img.Digest} {
		again, err := s.Fetch(t.Context(), ref, nil)
		if err != nil || again.Digest != img.Digest || again.DiskDigest != img.DiskDigest {
			t.Errorf("%s: %v, %+v", ref, err, again)
		}
	}
	if n := blobs.Load() - before; n > 3 { // the configurations
		t.Errorf("%d blobs were read for an image that is there", n)
	}
	for ref, want := range map[string]string{
		host + "/team/theirs:v1": "it is for linux/s390x",
		host + "/team/hello:v9":  "unknown",
		host + "/absent":         "unknown",
		"127.0.0.1:1/hello":      "refused",
	} {
		if _, err := s.Fetch(t.Context(), ref, nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ref) {
			t.Errorf("%s: error %v: want one with %q", ref, err, want)
		}
	}
}

func platformed(t *testing.T, img v1.Image, os, arch string) v1.Image {
	t.Helper()
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = os, arch
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestCredentials uses the usual file of docker's.
func TestCredentials(t *testing.T) {
	host := registry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, _ := r.BasicAuth(); user != "bee" || pass != "honey" {
				w.Header().Set("WWW-Authenticate", `Basic realm="hive"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	img := imageOf(t, layerOf(t, file("serve", "x")))
	push(t, host+"/hello", img, remote.WithAuth(&authn.Basic{Username: "bee", Password: "honey"}))
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	s := open(t, Options{})
	if _, err := s.Fetch(t.Context(), host+"/hello", nil); err == nil || !strings.Contains(err.Error(), "UNAUTHORIZED") {
		t.Errorf("without credentials: %v", err)
	}
	nothingLeft(t, s)
	auth := base64.StdEncoding.EncodeToString([]byte("bee:honey"))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), host+"/hello", nil); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

// TestBadRegistry has the registry's answers altered on the way.
func TestBadRegistry(t *testing.T) {
	img, err := mutate.AppendLayers(imageOf(t), compressed(t, types.OCILayer, layerOf(t, file("serve", strings.Repeat("bees", 1<<16)))))
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer, conf := m.Layers[0].Digest.String(), m.Config.Digest.String()
	for _, c := range []struct {
		name, path, want string
		alter            func(b []byte) []byte
		cut              bool // the connection breaks off
	}{
		{"altered layer", layer, "", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, false},
		{"truncated layer", layer, "", func(b []byte) []byte { return b[:len(b)/2] }, false},
		{"connection lost in a layer", layer, "", func(b []byte) []byte { return b[:len(b)/2] }, true},
		{"layer too long", layer, "", func(b []byte) []byte { return append(b, "more"...) }, false},
		{"altered configuration", conf, "", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, false},
		{"altered manifest", "/manifests/sha256", "", func(b []byte) []byte { return append(b, ' ') }, false},
		{"manifest that is none", "/manifests/", "", func([]byte) []byte { return []byte("<html>") }, false},
		{"endless manifest", "/manifests/", "", func([]byte) []byte { return bytes.Repeat([]byte(" "), 64<<20) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var on atomic.Bool
			host := registry(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !on.Load() || !strings.Contains(r.URL.Path, c.path) || r.Method != http.MethodGet {
						h.ServeHTTP(w, r)
						return
					}
					rec := httptest.NewRecorder()
					h.ServeHTTP(rec, r)
					whole := rec.Body.Len()
					b := c.alter(rec.Body.Bytes())
					for k, v := range rec.Header() {
						w.Header()[k] = v
					}
					w.Header().Set("Content-Length", fmt.Sprint(len(b)))
					if c.cut {
						w.Header().Set("Content-Length", fmt.Sprint(whole))
					}
					w.WriteHeader(rec.Code)
					w.Write(b)
				})
			})
			push(t, host+"/hello:v1", img)
			on.Store(true)
			d, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, Options{})
			want := ErrMalformed
			if c.cut {
				want = ErrUnreachable
			}
			if _, err = s.Fetch(t.Context(), host+"/hello@"+d.String(), nil); !errors.Is(err, want) {
				t.Errorf("error %v, which is not %v", err, want)
			}
			nothingLeft(t, s)
		})
	}
}
