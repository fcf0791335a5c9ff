package image

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestImport(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := []byte("a root disk")
	img := Image{Digest: "sha256:" + strings.Repeat("ab", 32), DiskBytes: int64(len(data)), DiskDigest: digestOf(data), Config: Config{Entrypoint: []string{"/app"}}}
	filled := 0
	fill := func(data []byte, err error) func(*os.File) error {
		return func(f *os.File) error {
			filled++
			if _, err := f.WriteAt(data, 0); err != nil {
				return err
			}
			return err
		}
	}
	if _, err := s.Import(t.Context(), img, fill([]byte("another one"), nil)); !errors.Is(err, ErrDamaged) {
		t.Errorf("another disk: %v", err)
	}
	broken := errors.New("broken off")
	if _, err := s.Import(t.Context(), img, fill(data[:3], broken)); !errors.Is(err, broken) {
		t.Errorf("a disk that broke off: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("there is %v, %v", list, err)
	}
	for range 2 { // the second time it is there
		got, err := s.Import(t.Context(), img, fill(data, nil))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(got.Disk); err != nil || string(b) != string(data) || got.Config.Entrypoint[0] != "/app" {
			t.Errorf("%+v has %q, %v", got, b, err)
		}
	}
	if filled != 3 {
		t.Errorf("filled %d times", filled)
	}
}
