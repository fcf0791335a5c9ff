package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range es {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteFileReplacesWithMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []string{"one", "", "three"} {
		if err := WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
			t.Fatalf("mode %v", st.Mode())
		}
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Fatalf("left behind: %q", got)
	}
}

func TestWriteAtAndUnsynced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	err := WriteAt(path, 0o600, func(f *os.File) error {
		_, err := f.WriteAt([]byte("b"), 1)
		return errors.Join(err, second(f.WriteAt([]byte("a"), 0)))
	})
	if got, _ := os.ReadFile(path); err != nil || string(got) != "ab" {
		t.Errorf("%q, %v", got, err)
	}
	err = WriteUnsynced(path, []byte("new"), 0o640)
	if got, _ := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	if err := WriteUnsynced(filepath.Join(path, "below"), nil, 0o640); err == nil {
		t.Error("written below a file")
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
}

func second(_ int, err error) error { return err }

func TestWriteLeavesOldOnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := Write(path, 0o600, func(w io.Writer) error {
		if _, err := io.WriteString(w, "half"); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("error %v, want boom", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Fatalf("content %q", got)
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Fatalf("left behind: %q", got)
	}
	if err := WriteFile(filepath.Join(t.TempDir(), "missing", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing directory: %v", err)
	}
}

func TestPublishOnlyOnce(t *testing.T) {
	parent := t.TempDir()
	final := filepath.Join(parent, "final")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won, lost := 0, 0
	for range 8 {
		wg.Go(func() {
			dir, err := Stage(parent, "x")
			if err != nil {
				t.Error(err)
				return
			}
			defer dir.Close()
			if err := os.WriteFile(filepath.Join(dir.Dir, "part"), []byte("whole"), 0o600); err != nil {
				t.Error(err)
			}
			err = dir.Publish(final)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case errors.Is(err, fs.ErrExist):
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 7 {
		t.Fatalf("%d won, %d were refused", won, lost)
	}
	if got := names(t, parent); len(got) != 1 || got[0] != "final" {
		t.Fatalf("in the directory: %q", got)
	}
	if got, _ := os.ReadFile(filepath.Join(final, "part")); string(got) != "whole" {
		t.Fatalf("part holds %q", got)
	}
}

func TestPublishRefusesEmptyDirectory(t *testing.T) {
	parent := t.TempDir()
	final := filepath.Join(parent, "final")
	if err := os.Mkdir(final, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := Stage(parent, "x")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := dir.Publish(final); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("error %v, want ErrExist", err)
	}
}

// What nobody is writing any more is removed, what somebody is writing stays.
func TestClean(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "odd[dir*")
	if err := os.Mkdir(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	dead, err := Stage(parent, "dead")
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Release(); err != nil { // as the kernel does
		t.Fatal(err)
	}
	alive, err := Stage(parent, "alive")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{TempPrefix + "f-1", "kept"} {
		if err := os.WriteFile(filepath.Join(parent, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err = Write(filepath.Join(parent, "written"), 0o600, func(io.Writer) error {
		err := Clean(parent)
		if got := names(t, parent); len(got) != 3 || got[0] != filepath.Base(alive.Dir) {
			t.Errorf("left: %q", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := errors.Join(alive.Close(), alive.Close()); err != nil {
		t.Error(err)
	}
	if got := names(t, parent); len(got) != 2 || got[0] != "kept" {
		t.Fatalf("left: %q", got)
	}
}

// TestCleanWhileOthersWrite has writers and cleaners race.
func TestCleanWhileOthersWrite(t *testing.T) {
	parent := t.TempDir()
	written := make(chan struct{})
	var cleaners, writers sync.WaitGroup
	for range 2 {
		cleaners.Go(func() {
			for {
				select {
				case <-written:
					return
				default:
				}
				if err := Clean(parent); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 4 {
		writers.Go(func() {
			for k := range 100 {
				if err := WriteUnsynced(filepath.Join(parent, "f"), []byte("x"), 0o600); err != nil {
					t.Error(err)
				}
				s, err := Stage(parent, "d")
				if err != nil {
					t.Error(err)
					continue
				}
				err = os.WriteFile(filepath.Join(s.Dir, "f"), nil, 0o600)
				if k == 0 {
					err = errors.Join(err, s.Publish(filepath.Join(parent, string(rune('a'+i)))))
				}
				if err := errors.Join(err, s.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(written)
	cleaners.Wait()
	if got := names(t, parent); len(got) != 5 {
		t.Errorf("there is %q", got)
	}
}
