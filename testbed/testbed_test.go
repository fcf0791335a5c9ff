package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPayload(t *testing.T) {
	dir := t.TempDir()
	p := payload{}
	for name, text := range map[string]string{"a": "one", "b": "two"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := p.add("/testbed/src/x/"+name, path); err != nil {
			t.Fatal(err)
		}
	}
	has := p.manifest()
	if d := p.differing(has); len(d) != 0 {
		t.Errorf("%v differ from themselves", d)
	}
	has["/testbed/src/x/a"] = "old"
	missing := p.differing(has)
	var archive bytes.Buffer
	if err := missing.archive(&archive, p); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := extract(&archive, out); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(out, "testbed/src/x/a")); err != nil || string(b) != "one" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(out, "testbed/src/x/b")); err == nil {
		t.Error("a file that is there was sent")
	}
	if b, err := os.ReadFile(filepath.Join(out, manifestIn)); err != nil || !strings.Contains(string(b), p["/testbed/src/x/a"].sum) || !strings.Contains(string(b), "/x/b") {
		t.Errorf("manifest %q, %v", b, err)
	}
}

func TestFirecrackerAndJailer(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"firecracker-v1-x86_64", "jailer-v1-x86_64", "lonely-firecracker"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		binary string
		files  int // -1 for an error
	}{{"firecracker-v1-x86_64", 2}, {"lonely-firecracker", 1}, {"absent", -1}} {
		p := payload{}
		err := p.addFirecracker(filepath.Join(dir, test.binary))
		if (err != nil) != (test.files < 0) || err == nil && len(p) != test.files {
			t.Errorf("%s: %v, %v; want %d files", test.binary, p, err, test.files)
		}
	}
}

// What comes out of the host is not trusted to stay in its directory.
func TestExtractStaysInside(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "../outside", Size: 1, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := extract(&b, filepath.Join(dir, "out")); err == nil {
		t.Error("a path that leads outside was taken")
	}
	if _, err := os.Stat(filepath.Join(dir, "outside")); err == nil {
		t.Error("a file was written outside")
	}
}

func TestTail(t *testing.T) {
	for _, test := range []struct {
		text string
		n    int
		want string
	}{{"one\ntwo\n", 100, "one\ntwo\n"}, {"one\ntwo\n", 6, "two\n"}} {
		if got := string(tail([]byte(test.text), test.n)); got != test.want {
			t.Errorf("the last %d bytes of %q are %q; want %q", test.n, test.text, got, test.want)
		}
	}
}
