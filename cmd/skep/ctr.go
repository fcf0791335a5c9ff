package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/image"
)

// ctr is containerd's own command line, for one namespace of containerd's that is
// the verb's.
type ctr struct {
	program, address string
	image            string // that was imported
}

const ctrNamespace = "skep-bench"

func (c *ctr) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program, append([]string{"--address", c.address, "--namespace", ctrNamespace}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for skep, which cleans up by it
	return cmd
}

func (c *ctr) run(ctx context.Context, args ...string) (string, error) {
	cmd := c.command(ctx, args...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("ctr %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// load gives a directory image to containerd.
func (c *ctr) load(ctx context.Context, dir, name string) error {
	f, err := os.CreateTemp("", "skep-bench-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := image.WriteArchive(ctx, f, dir, name); err != nil {
		return err
	}
	if _, err := c.run(ctx, "images", "import", f.Name()); err != nil {
		return err
	}
	c.image = name
	return nil
}

// task is a container's task, as containerd knows it.
type task struct {
	id, status string
	pid        int
}

func (c *ctr) tasks(ctx context.Context) (all []task, err error) {
	out, err := c.run(ctx, "tasks", "list")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 && f[0] != "TASK" {
			pid, _ := strconv.Atoi(f[1])
			all = append(all, task{f[0], f[2], pid})
		}
	}
	return all, nil
}

// pid is the process that containerd knows a container's task by.
func (c *ctr) pid(ctx context.Context, id string) (int, error) {
	all, err := c.tasks(ctx)
	for _, t := range all {
		if t.id == id && t.pid > 0 {
			return t.pid, nil
		}
	}
	return 0, errors.Join(err, fmt.Errorf("container %s has no task", id))
}

// clear removes every container of the namespace. Runs of it that were killed have
// left some, perhaps.
func (c *ctr) clear(ctx context.Context) error {
	out, err := c.run(ctx, "containers", "list", "--quiet")
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range strings.Fields(out) {
		errs = append(errs, c.remove(ctx, id))
	}
	return errors.Join(errs...)
}

// remove ends a container's task, if it has one, and removes it.
func (c *ctr) remove(ctx context.Context, id string) error {
	all, err := c.tasks(ctx)
	if err != nil {
		return err
	}
	for _, t := range all {
		if t.id == id {
			if _, err := c.run(ctx, "tasks", "delete", "--force", id); err != nil {
				return err
			}
		}
	}
	_, err = c.run(ctx, "containers", "delete", id)
	return err
}

// rootFiles are the files that a container under runc starts from: those of the
// image's layers, as its snapshot mounts them.
func (c *ctr) rootFiles(ctx context.Context, id string) (files []string, err error) {
	out, err := c.run(ctx, "snapshots", "mounts", "/nowhere", id)
	if err != nil {
		return nil, err
	}
	return filesBelow(lowerDirs(out)...)
}

// lowerDirs are the directories of layers in how `ctr snapshots mounts` says it.
func lowerDirs(mounts string) (dirs []string) {
	for _, option := range strings.FieldsFunc(mounts, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		if lower, ok := strings.CutPrefix(option, "lowerdir="); ok {
			dirs = append(dirs, strings.Split(lower, ":")...)
		}
	}
	return dirs
}

// filesBelow are the regular files in directories; one that is missing has none.
func filesBelow(dirs ...string) (files []string, err error) {
	for _, dir := range dirs {
		err = errors.Join(err, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, path)
			}
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}))
	}
	return files, err
}
