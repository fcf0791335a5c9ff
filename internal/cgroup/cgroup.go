// Package cgroup gives a process a cgroup v2 directory of its own: limits where
// the host delegates the controller, and in any case a way to end every process
// in it with one write. The VMM backends start their processes in one. Hosts
// differ (cgroup v1, hybrid, no delegation), so what is there is probed, and
// what is missing is left out.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a group. Zero values are no limit.
type Limits struct {
	MemoryBytes int64
	PIDs        int
	CPUs        float64 // 1.5 is one and a half
}

// cpuPeriod is the length of one accounting period of cpu.max, in microseconds:
// the kernel's default.
const cpuPeriod = 100_000

// Group is one cgroup with no children.
type Group struct {
	dir string
	// Applied lists the controllers whose limit was asked for and holds.
	Applied []string
}

// Root finds where groups can be made: the mount point of cgroup v2, also on
// a hybrid host. It is empty where there is none or it cannot be written.
func Root() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if isV2(dir) && unix.Access(dir, unix.W_OK) == nil {
			return dir
		}
	}
	return ""
}

func isV2(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Create makes the group parent/name with those of the limits that the host's
// controllers can enforce. Parent, and what is missing above it, is made too,
// and the controllers are enabled for its children.
func Create(parent, name string, l Limits) (*Group, error) {
	if strings.ContainsRune(name, '/') || name == "" || name[0] == '.' {
		return nil, fmt.Errorf("cgroup name %q: must be a single path element", name)
	}
	if !isV2(existing(parent)) {
		return nil, fmt.Errorf("making a cgroup below %s: it is not in a cgroup v2 file system", parent)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("making cgroup %s: %w", parent, err)
	}
	enable(parent)
	g := &Group{dir: filepath.Join(parent, name)}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, fmt.Errorf("making cgroup: %w", err)
	}
	if err := g.apply(l); err != nil {
		return nil, errors.Join(err, os.Remove(g.dir))
	}
	return g, nil
}

// existing is the nearest ancestor of dir, or dir, that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// enable turns on the controllers that parent has for its children. It begins
// at the top, since a controller reaches a group only through its ancestors. A
// refusal (a controller that is not there, an ancestor that has processes in
// it) is not an error: the limit is then not applied.
func enable(parent string) {
	var path []string
	for dir := parent; isV2(dir); dir = filepath.Dir(dir) {
		path = append(path, dir)
	}
	for i := len(path) - 1; i >= 0; i-- {
		have, err := os.ReadFile(filepath.Join(path[i], "cgroup.controllers"))
		if err != nil {
			continue
		}
		for _, c := range strings.Fields(string(have)) {
			if c == "memory" || c == "pids" || c == "cpu" {
				_ = write(path[i], "cgroup.subtree_control", "+"+c)
			}
		}
	}
}

func (g *Group) apply(l Limits) error {
	for _, s := range []struct {
		controller, file, value string
		want                    bool
	}{
		{"memory", "memory.max", strconv.FormatInt(l.MemoryBytes, 10), l.MemoryBytes > 0},
		{"pids", "pids.max", strconv.Itoa(l.PIDs), l.PIDs > 0},
		{"cpu", "cpu.max", fmt.Sprintf("%d %d", int64(l.CPUs*cpuPeriod), cpuPeriod), l.CPUs > 0},
	} {
		if !s.want {
			continue
		}
		err := write(g.dir, s.file, s.value)
		switch {
		case err == nil:
			g.Applied = append(g.Applied, s.controller)
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission):
			return fmt.Errorf("limiting cgroup %s: %w", g.dir, err)
		}
		if s.controller == "memory" && err == nil {
			// Without this a limited group swaps instead; hosts without swap lack the file.
			_ = write(g.dir, "memory.swap.max", "0")
		}
	}
	return nil
}

// write sets a file of a group. The file must be there: creating one is not
// permitted in this file system.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Dir is the group's directory.
func (g *Group) Dir() string { return g.dir }

// Open returns the directory's file, for syscall.SysProcAttr.CgroupFD: a
// process cloned into the group is under its limits from its first instruction.
func (g *Group) Open() (*os.File, error) {
	f, err := os.OpenFile(g.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening cgroup: %w", err)
	}
	return f, nil
}

// OutOfMemory says that a process of the group was killed for the group's limit of
// memory.
func (g *Group) OutOfMemory() bool {
	b, err := os.ReadFile(filepath.Join(g.dir, "memory.events"))
	if err != nil {
		return false // no limit without the controller
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(n) != "0"
		}
	}
	return false
}

// Kill sends SIGKILL to every process in the group.
func (g *Group) Kill() error {
	err := write(g.dir, "cgroup.kill", "1")
	if errors.Is(err, os.ErrNotExist) { // gone, or a kernel before 5.14
		err = g.killEach()
	}
	if err != nil {
		return fmt.Errorf("killing cgroup %s: %w", g.dir, err)
	}
	return nil
}

func (g *Group) killEach() error {
	data, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, f := range strings.Fields(string(data)) {
		if pid, e := strconv.Atoi(f); e == nil && pid > 0 {
			if e := unix.Kill(pid, unix.SIGKILL); e != nil && e != unix.ESRCH {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// Remove kills what is left in the group and removes it. It is idempotent.
func (g *Group) Remove() error {
	// A killed process leaves its group a moment after it has been reaped or
	// signalled, and rmdir answers EBUSY until then: there is no event to wait
	// for that all kernels have.
	const patience, pause = 2 * time.Second, 2 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		err := os.Remove(g.dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("removing cgroup: %w", err)
		}
		if err := g.Kill(); err != nil {
			return err
		}
	}
}

// Orphan returns the existing group at dir, which an earlier process made, so
// that it can be removed.
func Orphan(dir string) (*Group, error) {
	if !isV2(dir) {
		return nil, fmt.Errorf("%s: not a cgroup v2 directory", dir)
	}
	return &Group{dir: filepath.Clean(dir)}, nil
}
