package cluster

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// A log keeps the newest of what is written, and takes no more than it may.
func TestLogIsBounded(t *testing.T) {
	testenv.NoLeaks(t)
	dir := t.TempDir()
	log, closeLog, err := openLog(filepath.Join(dir, "kubelet.log"))
	if err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("x"), 1<<20-1), '\n')
	for range (logBackups+2)*logMiB + 3 {
		if _, err := log.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := log.WriteString("the end\n"); err != nil {
		t.Fatal(err)
	}
	closeLog()
	b, err := os.ReadFile(filepath.Join(dir, "kubelet.log"))
	if err != nil || !bytes.HasSuffix(b, []byte("x\nthe end\n")) {
		t.Errorf("the log's %d bytes do not have the end, %v", len(b), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all += info.Size()
	}
	if most := int64(logBackups+1) * logMiB << 20; all > most {
		t.Errorf("%d files of %d bytes are there: at most %d", len(entries), all, most)
	}
	if len(entries) != logBackups+1 {
		t.Errorf("%d files are there: want %d", len(entries), logBackups+1)
	}
}

// A log is closed also where a program that ended has left one running that may write
// to it, as containerd does its shims.
func TestLogIsClosed(t *testing.T) {
	testenv.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "containerd.log")
	log, closeLog, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(t.TempDir(), "pid")
	program := place(t).command(t.Context(), log, "sh", "-c", "sleep 1000 & echo $! >"+pid+"; echo ended")
	if err := program.Run(); err != nil {
		t.Fatal(err)
	}
	left, err := strconv.Atoi(strings.TrimSpace(read(t, pid)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(left, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	closeLog()
	if text := read(t, path); text != "ended\n" {
		t.Errorf("the log has %q", text)
	}
}
