package userfaultfd_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// Installing from a mapping of a file that is cut short is an error of the call, for
// the pages that are gone; those before come. No signal is raised.
func TestCopyFromTruncatedFile(t *testing.T) {
	const pages = 16
	path := filepath.Join(t.TempDir(), "file")
	content := make([]byte, pages*4096)
	for i := range content {
		content[i] = byte(i/4096 + 1)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	if err := os.Truncate(path, 4*4096); err != nil {
		t.Fatal(err)
	}
	base := p.Regions[0].HostAddr
	if n, err := p.FD.Copy(base, mem, 0); n != 4*4096 || err != nil {
		t.Errorf("%d bytes, %v; want the four pages that there are", n, err)
	}
	if n, err := p.FD.Copy(base+4*4096, mem[4*4096:], 0); n != 0 || !errors.Is(err, syscall.EFAULT) {
		t.Errorf("%d bytes, %v; want EFAULT", n, err)
	}
	sums, err := p.Do(uffdtest.Op{Pages: []int{3}})
	if err != nil || sums[0][0] != uffdtest.Sum(content[3*4096:4*4096]) {
		t.Errorf("%x, %v", sums, err)
	}
}
