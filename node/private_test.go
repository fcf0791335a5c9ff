package node

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// What an earlier version left readable is so no more, and nothing new is.
func TestNothingIsReadableByOthers(t *testing.T) {
	w := newWorld(t)
	w.bootTime, w.restoreTime = 0, 0
	w.say = []string{"a line"}
	for _, dir := range []string{"images", "snapshots", "logs", "run", "mem", "kernels"} {
		if err := os.Mkdir(filepath.Join(w.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"skep.db", "skep.db-wal"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := w.open(t, nil)
	deploy(t, n, hello(nil))
	defer acquireRelease(t, n)()
	seen := 0
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == w.dir {
			return err
		}
		seen++
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v", path, st.Mode())
		}
		if e.IsDir() && filepath.Dir(path) == w.dir {
			return nil
		}
		if e.IsDir() {
			return fs.SkipDir // what is below a directory of mode 0700 nobody reaches
		}
		return nil
	})
	if err != nil || seen < 9 {
		t.Errorf("%d entries, %v", seen, err)
	}
}

// acquireRelease has an instance in use until what it returns is called.
func acquireRelease(t *testing.T, n *Node) func() {
	l := acquire(t, n, AcquireOptions{})
	return func() { l.Release(okRecord()) }
}

func okRecord() api.Invocation { return api.Invocation{Status: 200, Time: time.Now()} }
