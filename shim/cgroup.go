package shim

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// group is the cgroup that containerd names for a container: its VMM is in it.
type group struct {
	v1 cgroup1.Cgroup
	v2 *cgroup2.Manager
}

// makeGroup makes the cgroup at path, in which a VMM has as much memory as its
// guest and itself need. systemd says that path is one of systemd's: slice:prefix:name.
func makeGroup(path string, systemd bool, l *specs.LinuxResources, memoryMiB int) (*group, error) {
	if path == "" {
		return nil, nil
	}
	r := groupLimits(l, memoryMiB)
	g, err := &group{}, error(nil)
	slice, name, ok := systemdNames(path)
	switch {
	case systemd && !ok:
		return nil, fmt.Errorf("cgroup %q: want slice:prefix:name, as systemd's are", path)
	case cgroups.Mode() == cgroups.Unified && systemd:
		g.v2, err = cgroup2.NewSystemd(slice, name, -1, cgroup2.ToResources(r))
	case cgroups.Mode() == cgroups.Unified:
		g.v2, err = cgroup2.NewManager("/sys/fs/cgroup", path, cgroup2.ToResources(r))
	case systemd:
		g.v1, err = cgroup1.New(cgroup1.Slice(slice, name), r, cgroup1.WithHierarchy(cgroup1.Systemd))
	default:
		g.v1, err = cgroup1.New(cgroup1.StaticPath(path), r)
	}
	if err != nil {
		return nil, fmt.Errorf("making cgroup %s: %w", path, err)
	}
	return g, nil
}

// openGroup opens the cgroup that a shim has left; nil if there is none.
func openGroup(path string, systemd bool) *group {
	slice, name, _ := systemdNames(path)
	g, err := &group{}, error(nil)
	switch {
	case path == "":
		return nil
	case cgroups.Mode() == cgroups.Unified && systemd:
		g.v2, err = cgroup2.LoadSystemd(slice, name)
	case cgroups.Mode() == cgroups.Unified:
		g.v2, err = cgroup2.Load(path)
	case systemd:
		g.v1, err = cgroup1.Load(cgroup1.Slice(slice, name), cgroup1.WithHierarchy(cgroup1.Systemd))
	default:
		g.v1, err = cgroup1.Load(cgroup1.StaticPath(path))
	}
	if err != nil {
		return nil
	}
	return g
}

// systemdNames splits slice:prefix:name.
func systemdNames(path string) (slice, name string, ok bool) {
	p := strings.Split(path, ":")
	if len(p) != 3 {
		return "", "", false
	}
	return p[0], p[1] + "-" + p[2] + ".scope", true
}

// groupLimits are a container's, but for what the guest itself keeps to: its
// memory and devices.
func groupLimits(l *specs.LinuxResources, memoryMiB int) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if l != nil {
		r.CPU, r.BlockIO = l.CPU, l.BlockIO
	}
	if memoryMiB > 0 {
		limit := int64(memoryMiB) << 20
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	return r
}

func (g *group) add(pid int) error {
	if g == nil {
		return nil
	}
	if g.v2 != nil {
		return g.v2.AddProc(uint64(pid))
	}
	return g.v1.AddProc(uint64(pid))
}

// stats are the kernel's counters, as containerd's clients want them.
func (g *group) stats() (any, error) {
	switch {
	case g == nil:
		return nil, errors.New("the container has no cgroup")
	case g.v2 != nil:
		return g.v2.Stat()
	}
	return g.v1.Stat(cgroup1.IgnoreNotExist)
}

// oomKilled says that the kernel has ended a process of it for want of memory.
func (g *group) oomKilled() bool {
	switch {
	case g == nil:
		return false
	case g.v2 != nil:
		m, err := g.v2.Stat()
		return err == nil && m.GetMemoryEvents().GetOomKill() > 0
	}
	m, err := g.v1.Stat(cgroup1.IgnoreNotExist)
	return err == nil && m.GetMemoryOomControl().GetOomKill() > 0
}

func (g *group) update(l *specs.LinuxResources, memoryMiB int) error {
	if g == nil {
		return nil
	}
	r := groupLimits(l, memoryMiB)
	if g.v2 != nil {
		return g.v2.Update(cgroup2.ToResources(r))
	}
	return g.v1.Update(r)
}

// remove removes it. The kernel takes a moment to see that a process has ended.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	var err error
	for range 50 {
		if g.v2 != nil {
			err = g.v2.Delete()
		} else {
			err = g.v1.Delete()
		}
		if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, cgroup1.ErrCgroupDeleted) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("removing a cgroup: %w", err)
}
