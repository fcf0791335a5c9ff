package image

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestWriteArchive reads what was written back as any other archive.
func TestWriteArchive(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"bin/server": "a server", ConfigFile: `{"entrypoint": ["/bin/server"], "env": ["A=b"], "exposed": ["80/tcp"]}`} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := WriteArchive(t.Context(), &b, root, "example.com/x:v1"); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "archive.tar")
	if err := os.WriteFile(archive, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(dir, "store"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	img, err := s.Fetch(t.Context(), "docker-archive:"+archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := img.Config
	if !slices.Equal(c.Entrypoint, []string{"/bin/server"}) || !slices.Equal(c.Env, []string{"A=b"}) || !slices.Equal(c.Exposed, []string{"80/tcp"}) {
		t.Errorf("its configuration is %+v", c)
	}
	for _, bad := range []func() error{
		func() error { return WriteArchive(t.Context(), &b, root, "no name") },
		func() error { return WriteArchive(t.Context(), &b, filepath.Join(root, "bin"), "example.com/x:v1") }, // has no configuration
		func() error { return WriteArchive(t.Context(), &b, filepath.Join(root, "none"), "example.com/x:v1") },
	} {
		if bad() == nil {
			t.Error("it took what it cannot write")
		}
	}
}
