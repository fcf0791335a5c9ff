package firecracker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// archive is a release as the project publishes it, with scripts for programs.
func archive(t *testing.T, release string, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	put := func(name, title string) {
		text := "#!/bin/sh\ncase $1 in --version) echo " + title + " v" + release + " ;; --snapshot-version) echo v10.0.0 ;; esac\n"
		if err := w.WriteHeader(&tar.Header{Name: "release-v" + release + "-x86_64/" + name + "-v" + release + "-x86_64", Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range names {
		put(n, strings.ToUpper(n[:1])+n[1:])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// publish serves a release, and counts the requests.
func publish(t *testing.T, release string, tarball []byte, sum string) (string, *atomic.Int64) {
	t.Helper()
	var requests atomic.Int64
	name := "/v" + release + "/firecracker-v" + release + "-x86_64.tgz"
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		switch r.URL.Path {
		case name:
			_, _ = w.Write(tarball)
		case name + ".sha256.txt":
			_, _ = w.Write([]byte(sum + "  firecracker-v" + release + "-x86_64.tgz\n"))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, &requests
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestFetch(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/bin")
	dir := filepath.Join(t.TempDir(), "new")
	for _, release := range []string{"1.9.0", Release} {
		a := archive(t, release, "seccompiler-bin", "firecracker", "jailer")
		url, requests := publish(t, release, a, sumOf(a))
		opts := FetchOptions{Release: release, From: url + "/"}
		h, err := Fetch(t.Context(), dir, opts)
		if release == "1.9.0" {
			if err == nil || !strings.Contains(err.Error(), "at least") {
				t.Errorf("an old release: %v", err)
			}
			continue
		}
		want := filepath.Join(dir, "v"+release)
		if err != nil || h.Path != filepath.Join(want, "firecracker") || h.Jailer != filepath.Join(want, "jailer") || h.Version != release {
			t.Fatalf("%+v, %v", h, err)
		}
		before := requests.Load()
		if again, err := Fetch(t.Context(), dir, opts); err != nil || again != h || requests.Load() != before {
			t.Errorf("a second time: %+v, %v, %d requests", again, err, requests.Load()-before)
		}
		if got := Find("", dir); got != h.Path {
			t.Errorf("Find returns %q", got)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".fetch-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFetchRefuses(t *testing.T) {
	good := archive(t, Release, "firecracker", "jailer")
	half := archive(t, Release, "firecracker")
	for name, test := range map[string]struct {
		tarball []byte
		sum     string
		release string
		want    string
	}{
		"another sum":   {good, sumOf([]byte("other")), Release, "was published"},
		"no sum":        {good, "<html>", Release, "want a SHA-256"},
		"no archive":    {[]byte("nonsense"), sumOf([]byte("nonsense")), Release, "unpacking"},
		"truncated":     {good[:len(good)/2], sumOf(good[:len(good)/2]), Release, "unpacking"},
		"no jailer":     {half, sumOf(half), Release, "lacks"},
		"not there":     {good, sumOf(good), "9.9.9", "404"},
		"a path for it": {good, sumOf(good), "../1.0.0", "want one such as"},
	} {
		dir := t.TempDir()
		url, _ := publish(t, Release, test.tarball, test.sum)
		_, err := Fetch(t.Context(), dir, FetchOptions{Release: test.release, From: url})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	_, err := Fetch(t.Context(), t.TempDir(), FetchOptions{From: "http://127.0.0.1:1"})
	if err == nil || !strings.Contains(err.Error(), "side by side on the PATH") {
		t.Errorf("unreachable: %v", err)
	}
}

func TestFind(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin)
	if got := Find("", dir); got != "" {
		t.Errorf("none: %q", got)
	}
	for _, v := range []string{"v1.9.3", "v1.16.1", "v1.16.0", "nonsense"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o755); err != nil {
			t.Fatal(err)
		}
		fake(t, filepath.Join(dir, v), "firecracker", "Firecracker", "1")
	}
	if got, want := Find("firecracker", dir), filepath.Join(dir, "v1.16.1/firecracker"); got != want {
		t.Errorf("the newest: %q, want %q", got, want)
	}
	if got := Find("/nonexistent/firecracker", dir); got != "" {
		t.Errorf("a path that names nothing: %q", got)
	}
	onPath := fake(t, bin, "firecracker", "Firecracker", "1")
	if got := Find("", dir); got != onPath {
		t.Errorf("on the PATH: %q, want %q", got, onPath)
	}
}
