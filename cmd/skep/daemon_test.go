package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/testenv"
)

// A daemon that has ended uses no image any more: another process may remove them.
func TestCloseLetsGoOfTheImageStore(t *testing.T) {
	testenv.Need(t, "root")
	dir, root := t.TempDir(), t.TempDir()
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	images, err := d.openImages(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, image.ConfigFile), []byte(`{"entrypoint":["/a"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := images.Fetch(t.Context(), "dir:"+root, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := image.Open(dir, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Remove(img.Digest); !errors.Is(err, image.ErrInUse) {
		t.Errorf("the daemon uses it: %v", err)
	}
	for range 2 {
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Remove(img.Digest); err != nil {
		t.Errorf("the daemon has ended: %v", err)
	}
}
