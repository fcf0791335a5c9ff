package shim

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/cgroups/systemd"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// group is the cgroup that containerd names for a container: its VMM is in it. It
// is made as runc makes it, of version 1 or 2, by systemd or without; its counters
// are read as containerd's clients want them.
type group struct {
	manager cgroups.Manager
	at      string // its path below the mount points
	named   string // as containerd has it

	killed  atomic.Bool   // a process of it was, for its limit of memory
	watched chan struct{} // closed when watch has seen the last process go; nil without
}

// openGroup returns the cgroup of that name, which may not be there yet; nil if no
// name is given. The name is a path, or one of systemd's.
func openGroup(name string) (*group, error) {
	if name == "" {
		return nil, nil
	}
	g := &group{named: name, at: filepath.Join("/", name)}
	if g.at == "/" {
		return nil, &refusal{fmt.Errorf("cgroup %s is the root of all: a container has one of its own", name)}
	}
	conf := &cgroups.Cgroup{Path: g.at, Resources: limits(nil, 0)}
	if isSystemds(name) {
		if !systemd.IsRunningSystemd() {
			return nil, &refusal{fmt.Errorf("cgroup %s is one of systemd's, which does not run on this host: have the kubelet (cgroupDriver) and containerd (SystemdCgroup) make cgroups without it", name)}
		}
		p := strings.Split(name, ":")
		conf = &cgroups.Cgroup{Systemd: true, Parent: p[0], ScopePrefix: p[1], Name: p[2], Resources: conf.Resources}
		slice := p[0]
		if slice == "" {
			slice = "system.slice"
		}
		path, err := systemd.ExpandSlice(slice)
		if err != nil {
			return nil, &refusal{fmt.Errorf("cgroup %s: %w", name, err)}
		}
		g.at = filepath.Join(path, p[1]+"-"+p[2]+".scope")
	}
	var err error
	if g.manager, err = manager.New(conf); err != nil {
		return nil, fmt.Errorf("opening cgroup %s: %w", name, err)
	}
	return g, nil
}

// isSystemds tells a name of systemd's, slice:prefix:name, from a path. Nothing else
// does: the CRI gives the one or the other by the pod's parent.
func isSystemds(name string) bool {
	return strings.Count(name, ":") == 2 && !strings.Contains(name, "/")
}

// enter makes the cgroup with these limits, and puts a process into it.
func (g *group) enter(pid int, l *cgroups.Resources) error {
	err := g.manager.Apply(pid)
	if err == nil {
		err = g.manager.Set(l)
	}
	if err != nil {
		return fmt.Errorf("putting the VMM into cgroup %s: %w", g.named, err)
	}
	if cgroups.IsCgroup2UnifiedMode() {
		return g.watch()
	}
	return nil
}

// watch notes that a process is killed for the limit of memory. It cannot be asked
// for afterwards: systemd removes a cgroup with its last process.
func (g *group) watch() error {
	m, err := cgroup2.Load(g.at)
	if err != nil {
		return fmt.Errorf("watching cgroup %s: %w", g.named, err)
	}
	events, end := m.EventChan()
	g.watched = make(chan struct{})
	go func() { // ends with the last process
		defer close(g.watched)
		for ended := false; !ended; {
			select {
			case e := <-events:
				g.note(e)
			case <-end:
				ended = true
			}
		}
		select {
		case e := <-events: // the last one, of which the end came first
			g.note(e)
		default:
		}
	}()
	return nil
}

// limits are a container's, but for what the guest itself keeps to (devices, the
// number of processes), and for the memory, which is the guest's and its VMM's.
func limits(l *specs.LinuxResources, memoryMiB int) *cgroups.Resources {
	r := &cgroups.Resources{SkipDevices: true, Memory: int64(memoryMiB) << 20}
	if l == nil {
		return r
	}
	if c := l.CPU; c != nil {
		r.CpuShares, r.CpuWeight = value(c.Shares), cgroups.ConvertCPUSharesToCgroupV2Value(value(c.Shares))
		r.CpuQuota, r.CpuPeriod, r.CpuBurst, r.CPUIdle = value(c.Quota), value(c.Period), c.Burst, c.Idle
		r.CpuRtRuntime, r.CpuRtPeriod = value(c.RealtimeRuntime), value(c.RealtimePeriod)
		r.CpusetCpus, r.CpusetMems = c.Cpus, c.Mems
	}
	if b := l.BlockIO; b != nil {
		r.BlkioWeight, r.BlkioLeafWeight = value(b.Weight), value(b.LeafWeight)
		for _, d := range b.WeightDevice {
			r.BlkioWeightDevice = append(r.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, value(d.Weight), value(d.LeafWeight)))
		}
		r.BlkioThrottleReadBpsDevice = throttles(b.ThrottleReadBpsDevice)
		r.BlkioThrottleWriteBpsDevice = throttles(b.ThrottleWriteBpsDevice)
		r.BlkioThrottleReadIOPSDevice = throttles(b.ThrottleReadIOPSDevice)
		r.BlkioThrottleWriteIOPSDevice = throttles(b.ThrottleWriteIOPSDevice)
	}
	return r
}

func throttles(list []specs.LinuxThrottleDevice) (out []*cgroups.ThrottleDevice) {
	for _, d := range list {
		out = append(out, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
	return out
}

// value is what p points at; the zero value, which is no limit, without one.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// stats are the kernel's counters.
func (g *group) stats() (any, error) {
	if g == nil {
		return nil, errors.New("the container has no cgroup")
	}
	if cgroups.IsCgroup2UnifiedMode() {
		m, err := cgroup2.Load(g.at)
		if err != nil {
			return nil, err
		}
		return m.Stat()
	}
	c, err := cgroup1.Load(cgroup1.StaticPath(g.at))
	if err != nil {
		return nil, err
	}
	return c.Stat(cgroup1.IgnoreNotExist)
}

func (g *group) note(e cgroup2.Event) {
	if e.OOMKill > 0 {
		g.killed.Store(true)
	}
}

// watchLimit bounds the wait for what watch sees of a process that has ended.
const watchLimit = 2 * time.Second

// oomKilled says, of a group whose process has ended, that the kernel has ended it
// for the group's limit of memory.
func (g *group) oomKilled() bool {
	if g == nil {
		return false
	}
	if g.watched != nil {
		select {
		case <-g.watched:
		case <-time.After(watchLimit): // somebody else is in it
		}
	}
	n, err := g.manager.OOMKillCount() // fails when it is gone
	return g.killed.Load() || err == nil && n > 0
}

func (g *group) update(l *cgroups.Resources) error {
	if g == nil {
		return nil
	}
	return g.manager.Set(l)
}

// remove removes it, if it is there.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	if err := g.manager.Destroy(); err != nil {
		return fmt.Errorf("removing cgroup %s: %w", g.named, err)
	}
	return nil
}
