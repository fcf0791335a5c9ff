package shim

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/skep-dev/skep/internal/filelock"
)

// Of sockets those go that nobody serves, unless somebody is about to.
func TestSweepSockets(t *testing.T) {
	was := socketDir
	socketDir = t.TempDir()
	t.Cleanup(func() { socketDir = was })
	served, err := listen("unix://" + filepath.Join(socketDir, "served"))
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	left, err := net.Listen("unix", filepath.Join(socketDir, "left"))
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	if err := os.WriteFile(filepath.Join(socketDir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	names := func() (names string) {
		entries, err := os.ReadDir(socketDir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names += e.Name() + " "
		}
		return names
	}
	held, err := filelock.Hold(socketDir)
	if err != nil {
		t.Fatal(err)
	}
	if sweepSockets(); names() != "file left served " {
		t.Errorf("while a shim starts, there are %s", names())
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	if sweepSockets(); names() != "file served " {
		t.Errorf("there are %s: want the file, and the socket that is served", names())
	}
}
