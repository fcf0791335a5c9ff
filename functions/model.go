package functions

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// addModel runs a function's model.py in its base and adds what that writes to
// /app to the files. It needs root, tar and unshare.
func addModel(ctx context.Context, cacheDir, base string, files map[string][]byte) error {
	if os.Geteuid() != 0 {
		return errors.New("it runs in a root directory of its own, which needs root")
	}
	dir, err := os.MkdirTemp(cacheDir, ".model-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := run(ctx, "tar", "--extract", "--file="+base, "--directory="+dir); err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	for _, mount := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, mount), 0o755); err != nil {
			return err
		}
	}
	// Without a network, and gone with all its children and mounts.
	err = run(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", inRoot, "sh", dir)
	if err != nil {
		return err
	}
	return addNew(dir, files)
}

// inRoot runs a model.py in a root directory, with what libraries look for there.
const inRoot = `mount --bind /dev "$1/dev" && mount -t proc proc "$1/proc" &&
	exec chroot "$1" /usr/bin/python3 -B /app/model.py`

// addNew adds the files of dir's app directory that are not among them yet.
func addNew(dir string, files map[string][]byte) error {
	return filepath.WalkDir(filepath.Join(dir, "app"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || files[name] != nil {
			return err
		}
		files[name], err = os.ReadFile(path)
		return err
	})
}

// run runs a command, whose output is in the error.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), oneThread, "PYTHONHASHSEED=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
