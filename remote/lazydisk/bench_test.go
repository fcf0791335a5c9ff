package lazydisk_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkWarmRead reads what is here and in the page cache: by the file itself, and by the file system.
func BenchmarkWarmRead(b *testing.B) {
	const size = 256 << 20
	d := newDisk(b, size)
	d.fill(0, size)
	f := d.show(b, serve(b), nil)
	for _, from := range []struct {
		name string
		file *os.File
	}{{"file", d.file}, {"served", f}} {
		for _, n := range []int{4 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", from.name, n>>10), func(b *testing.B) {
				buf := make([]byte, n)
				b.SetBytes(int64(n))
				for b.Loop() {
					if _, err := from.file.ReadAt(buf, rand.Int64N(size/int64(n))*int64(n)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func serve(t testing.TB) *server {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "disks"))
}
