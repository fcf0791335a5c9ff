package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/image"
)

// A daemon that has ended holds its image store no longer: the next to open it
// may clean it up.
func TestCloseLetsGoOfTheImageStore(t *testing.T) {
	dir := t.TempDir()
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	if _, err := d.openImages(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, ".staging-1")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := image.Open(dir, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store is still held: %v", err)
	}
}
