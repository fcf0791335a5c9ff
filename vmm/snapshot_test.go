package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTakeSnapshot(t *testing.T) {
	ready := Life{Booted: true, Paused: true}
	state := func(f *os.File) error { return os.WriteFile(f.Name(), []byte("state"), 0) }
	for name, test := range map[string]struct {
		life  Life
		write func(t *Taking, f *os.File) error
		want  string // "" for success
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
