package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogKeepsTheNewestInBoundedSpace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for n := range 500 {
		line := fmt.Sprintf("line %d\n", n)
		all.WriteString(line)
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		old, _ := os.ReadFile(path + ".1")
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kept := string(old) + string(now)
		if len(kept) > 1000 || len(kept) < min(500, all.Len()) || !strings.HasSuffix(all.String(), kept) {
			t.Fatalf("after line %d it holds %d bytes: %q", n, len(kept), kept)
		}
	}
	// A write larger than the whole log.
	big := strings.Repeat("0123456789", 500)
	if _, err := l.Write([]byte(big)); err != nil {
		t.Fatal(err)
	}
	now, _ := os.ReadFile(path)
	if !strings.HasSuffix(big, string(now)) || len(now) == 0 {
		t.Errorf("after a large write it holds %d bytes", len(now))
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := l.Write([]byte("x")); n != 1 || err != nil {
		t.Errorf("Write after Close: %d, %v; want it to be swallowed", n, err)
	}
}

// A full disk must not stop the writer.
func TestLogSwallowsErrors(t *testing.T) {
	l, err := OpenLog("/dev/full", 1000)
	if err != nil {
		t.Skip("needs /dev/full")
	}
	defer l.Close()
	if n, err := l.Write([]byte("lost")); n != 4 || err != nil {
		t.Errorf("Write: %d, %v", n, err)
	}
}
