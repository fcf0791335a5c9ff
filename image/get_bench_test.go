package image

import (
	"path/filepath"
	"testing"
)

// BenchmarkGet is what a cold start waits for to know its root disk.
func BenchmarkGet(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "images"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ref, _ := writeLayout(b, imageOf(b, layerOf(b, file("serve", "x"))))
	img, err := s.Fetch(b.Context(), ref, nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Get(img.Digest); err != nil {
			b.Fatal(err)
		}
	}
}
