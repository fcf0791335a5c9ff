package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTakeSnapshot(t *testing.T) {
	ready := Life{Booted: true, Paused: true}
	state := func(f *os.File) error { return os.WriteFile(f.Name(), []byte("state"), 0) }
	for name, test := range map[string]struct {
		life  Life
		write func(t *Taking, f *os.File) error // nil: is not come to
		want  string                            // "" for success
	}{
		"whole":         {ready, func(_ *Taking, f *os.File) error { return state(f) }, ""},
		"restored":      {Life{Paused: true}, nil, ErrNotBooted.Error()},
		"running":       {Life{Booted: true}, nil, "not paused"},
		"spent":         {Life{Booted: true, Paused: true, Spent: true}, nil, "before"},
		"refused":       {ready, func(*Taking, *os.File) error { return errors.New("no") }, "no"},
		"endless state": {ready, func(_ *Taking, f *os.File) error { return f.Truncate(1 << 40) }, "large"},
		"short memory":  {ready, func(k *Taking, _ *os.File) error { return os.Truncate(k.MemoryFile, 1) }, "1 bytes long"},
		"vast memory":   {ready, func(k *Taking, _ *os.File) error { return os.Truncate(k.MemoryFile, 1<<40) }, "bytes long"},
		"a link for memory": {ready, func(k *Taking, _ *os.File) error {
			return errors.Join(os.Rename(k.MemoryFile, k.MemoryFile+"2"), os.Symlink(k.MemoryFile+"2", k.MemoryFile))
		}, "bytes long"},
		"memory there": {ready, func(k *Taking, _ *os.File) error { return os.WriteFile(k.Memory, nil, 0o600) }, "exists"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k := Taking{Life: test.life, State: filepath.Join(dir, "state"), Memory: filepath.Join(dir, "memory"), MemoryFile: filepath.Join(dir, "own"), MemoryMiB: 1}
			if err := errors.Join(os.WriteFile(k.MemoryFile, nil, 0o600), os.Truncate(k.MemoryFile, 1<<20)); err != nil {
				t.Fatal(err)
			}
			k.Write = func(f *os.File) error { return test.write(&k, f) }
			err := TakeSnapshot(k)
			if test.want == "" {
				if b, rerr := os.ReadFile(k.State); err != nil || rerr != nil || string(b) != "state" {
					t.Errorf("%v; the state is %q, %v", err, b, rerr)
				}
				if st, err := os.Stat(k.Memory); err != nil || st.Size() != 1<<20 {
					t.Errorf("the memory: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want %q", err, test.want)
			}
			if _, err := os.Lstat(k.State); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the state is left: %v", err)
			}
			if _, err := os.Lstat(k.MemoryFile); err != nil {
				t.Errorf("the machine's own memory: %v", err)
			}
		})
	}
}

// What has the state's name already is neither written to nor waited for.
func TestTakeSnapshotReplacesNothing(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"a file": func(p string) error { return os.WriteFile(p, []byte("old"), 0o600) },
		"a FIFO": func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a link": func(p string) error { return os.Symlink(p+"2", p) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k := Taking{Life: Life{Booted: true, Paused: true}, State: filepath.Join(dir, "state"), Write: func(*os.File) error {
				t.Error("it is written to")
				return nil
			}}
			if err := make(k.State); err != nil {
				t.Fatal(err)
			}
			reader, err := os.OpenFile(k.State, os.O_RDONLY|unix.O_NONBLOCK, 0) // or who opens a FIFO would wait for ever
			if err == nil {
				defer reader.Close()
			}
			if err := TakeSnapshot(k); !errors.Is(err, os.ErrExist) {
				t.Errorf("%v, want that it is there", err)
			}
			if _, err := os.Lstat(k.State); err != nil {
				t.Errorf("it was removed: %v", err)
			}
			if _, err := os.Lstat(k.State + "2"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("where the link leads: %v", err)
			}
		})
	}
}
