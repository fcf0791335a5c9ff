package shim

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/guest"
)

// container is what a microVM needs to know to be a container: an OCI
// specification in a guest's terms.
type container struct {
	Hostname      string // "" when the specification does not say
	Process       guest.Process
	ReadOnly      bool // its root
	MemoryMiB     int  // of the guest
	VCPUs         int
	LimitMiB      int     // of memory, as the specification has it; 0: none
	ProcessesMiB  int     // of memory that its processes may have of the guest's; 0: all but the guest's own
	CPUs          float64 // as the specification has it; 0: no limit
	CPUSet        string  // of the host's, that the VMM may run on
	NetNS         string  // path of the network namespace it is to be in; "": one of its own
	IPv6          bool    // that has it
	Cgroup        string  // as the specification names it
	Mounts        []mount
	Sysctls       map[string]string
	Masked        []string // paths that the container is not to see
	ReadonlyPaths []string
	Settings      settings
	Hooks         *specs.Hooks
}

// mount is something of the container's files that is not its image's.
type mount struct {
	Path string // in the container
	// Source is a file or directory of the host's that is delivered; "" makes it an
	// empty directory in the guest's memory.
	Source  string
	Flags   []string // what it forbids: "ro", "noexec"
	SizeMiB int      // of a directory in memory; 0: as the guest has it
	Mode    int64    // the same; 0: 0755
	Image   bool     // it is the image's own directory
	// Return has the file's content go back to Source when the container has ended.
	Return bool
}

// Sizes of guests.
const (
	defaultMemoryMiB = 256 // without a limit
	minMemoryMiB     = 128
	maxMemoryMiB     = 1 << 20
	guestOwnMiB      = 64 // what the guest's kernel and agent take of its memory
	memoryStepMiB    = 64 // guests of nearly one size share a snapshot
	maxVCPUs         = 32
)

// translate says what a microVM has to be to be this container. What it cannot
// be is an error that names it: nothing of a specification is left out that its
// owner would miss.
func translate(spec *specs.Spec) (container, error) {
	c := container{}
	t := translation{spec: spec, c: &c}
	for _, step := range []func() error{t.settings, t.process, t.namespaces, t.devices, t.resources, t.mounts, t.rest} {
		if err := step(); err != nil {
			return container{}, err
		}
	}
	return c, nil
}

type translation struct {
	spec *specs.Spec
	c    *container
}

func (t translation) settings() (err error) {
	t.c.Settings, err = readSettings(t.spec.Annotations)
	return err
}

func (t translation) process() (err error) {
	if t.spec.Process == nil {
		return fmt.Errorf("the specification has no process")
	}
	t.c.Process, err = translateProcess(t.spec.Process)
	t.c.Hostname = t.spec.Hostname
	if t.c.Settings.Port == 0 {
		t.c.Settings.Port = knativePort(t.spec.Process.Env)
	}
	return err
}

// translateProcess is for a container's own process and for those that are run
// in it later.
func translateProcess(p *specs.Process) (guest.Process, error) {
	out := guest.Process{Argv: p.Args, Env: p.Env, Dir: p.Cwd, MakeDir: true, TTY: p.Terminal, NoNewPrivileges: p.NoNewPrivileges,
		IDs: &guest.IDs{UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids}, OOMScoreAdj: p.OOMScoreAdj, Umask: p.User.Umask}
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return out, fmt.Errorf("the process has no arguments, so there is nothing to run")
	case p.Scheduler != nil, p.IOPriority != nil, p.ExecCPUAffinity != nil:
		return out, fmt.Errorf("the process asks for a scheduling policy, an I/O priority or CPUs of its own: a microVM's processes have none on the host")
	}
	for _, s := range slices.Concat(p.Args, p.Env, []string{p.Cwd}) {
		if strings.ContainsRune(s, 0) {
			return out, fmt.Errorf("the process has a NUL in %.64q", s)
		}
	}
	if p.Cwd != "" && p.Cwd[0] != '/' {
		return out, fmt.Errorf("the process's working directory is %q: want an absolute path", p.Cwd)
	}
	if s := p.ConsoleSize; s != nil && p.Terminal {
		out.Rows, out.Cols = uint16(min(s.Height, 1<<16-1)), uint16(min(s.Width, 1<<16-1))
	}
	for _, r := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, guest.Rlimit{Type: r.Type, Soft: r.Soft, Hard: r.Hard})
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &guest.Capabilities{Bounding: c.Bounding, Effective: c.Effective, Permitted: c.Permitted, Inheritable: c.Inheritable, Ambient: c.Ambient}
	}
	return out, nil
}

// knativePort is where a container of Knative's serves.
func knativePort(env []string) (port int) {
	knative := false
	for _, v := range env {
		knative = knative || strings.HasPrefix(v, "K_SERVICE=")
		if s, ok := strings.CutPrefix(v, "PORT="); ok {
			if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 1<<16 {
				port = n
			}
		}
	}
	if !knative {
		return 0
	}
	return port
}

// namespaces refuses those of the host's or of other containers', into which no
// guest can look; the network's it can be put behind.
func (t translation) namespaces() error {
	if t.spec.Linux == nil {
		return fmt.Errorf("the specification has no part for Linux")
	}
	paths, has := map[specs.LinuxNamespaceType]string{}, map[specs.LinuxNamespaceType]bool{}
	for _, n := range t.spec.Linux.Namespaces {
		// The CRI names a pause container's, which is the host's where the pod's is.
		paths[n.Type], has[n.Type] = n.Path, n.Path == "" || !isHosts(n)
	}
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		what string
	}{
		{specs.NetworkNamespace, "network (hostNetwork, --net-host)"},
		{specs.PIDNamespace, "processes (hostPID)"},
		{specs.IPCNamespace, "IPC (hostIPC)"},
		{specs.UTSNamespace, "host name"},
		{specs.MountNamespace, "mounts"},
	} {
		if !has[n.kind] {
			return fmt.Errorf("the container is to share the host's %s: a microVM has a kernel of its own", n.what)
		}
	}
	// Where there is no other container, there is none to share them with.
	if p := paths[specs.PIDNamespace]; p != "" && !isOnly(t.spec) {
		return fmt.Errorf("the container is to share the processes of another (shareProcessNamespace; %s): a microVM has a kernel of its own", p)
	}
	if len(t.spec.Linux.TimeOffsets) > 0 {
		return fmt.Errorf("the container is to have a clock of its own: a microVM keeps the host's")
	}
	t.c.NetNS = paths[specs.NetworkNamespace]
	t.c.Process.Neighbours = !isAlone(t.spec)
	t.c.Process.Init = paths[specs.PIDNamespace] == "" // else the first is the pause container's, for which the guest's stands
	return nil
}

// isHosts tells a namespace that is the host's, which are the shim's own.
func isHosts(n specs.LinuxNamespace) bool {
	file, ok := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.PIDNamespace: "pid", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.MountNamespace: "mnt"}[n.Type]
	if !ok {
		return false
	}
	own, err1 := os.Stat("/proc/self/ns/" + file)
	its, err2 := os.Stat(n.Path)
	return err1 == nil && err2 == nil && os.SameFile(own, its)
}

// guestDevices are those that every guest has.
var guestDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"}

func (t translation) devices() error {
	var rules []specs.LinuxDeviceCgroup
	if r := t.spec.Linux.Resources; r != nil {
		rules = r.Devices
	}
	// Every device of the host's is what makes a container privileged.
	for _, d := range rules {
		if d.Allow && d.Major == nil && d.Minor == nil && (d.Type == "a" || d.Type == "") {
			return fmt.Errorf("the container is privileged: a microVM has no way to the host's devices and kernel; inside it has all capabilities that the specification lists")
		}
	}
	for _, d := range t.spec.Linux.Devices {
		if !slices.Contains(guestDevices, d.Path) {
			return fmt.Errorf("device %s: a microVM has none of the host's devices", d.Path)
		}
	}
	return nil
}

// resources size the guest.
func (t translation) resources() error {
	c, r := t.c, t.spec.Linux.Resources
	c.Cgroup = t.spec.Linux.CgroupsPath
	c.MemoryMiB, c.VCPUs = defaultMemoryMiB, 1
	if c.LimitMiB = memoryLimit(r); c.LimitMiB > 0 {
		c.MemoryMiB = max(minMemoryMiB, roundUp(c.LimitMiB+guestOwnMiB, memoryStepMiB))
	}
	if r != nil && r.CPU != nil {
		c.CPUSet = r.CPU.Cpus
		if c.CPUs = cpuLimit(r.CPU); c.CPUs > 0 {
			c.VCPUs = vcpus(c.CPUs)
		}
	}
	if c.Settings.MemoryMiB > 0 {
		if c.Settings.MemoryMiB < c.LimitMiB {
			return fmt.Errorf("annotation %s says %d MiB, the container's limit is %d MiB: want no less", annotationMemory, c.Settings.MemoryMiB, c.LimitMiB)
		}
		c.MemoryMiB = c.Settings.MemoryMiB
	} else {
		c.ProcessesMiB = c.LimitMiB
	}
	if c.Settings.VCPUs > 0 {
		c.VCPUs = c.Settings.VCPUs
	}
	if c.MemoryMiB > maxMemoryMiB {
		return fmt.Errorf("the guest would have %d MiB of memory: at most %d", c.MemoryMiB, maxMemoryMiB)
	}
	return nil
}

// memoryLimit is a container's, in MiB; 0: it has none.
func memoryLimit(r *specs.LinuxResources) int {
	if r == nil || r.Memory == nil || value(r.Memory.Limit) <= 0 {
		return 0
	}
	return int(min((*r.Memory.Limit-1)>>20+1, maxMemoryMiB))
}

// cpuLimit is a container's, in processors; 0: it has none.
func cpuLimit(c *specs.LinuxCPU) float64 {
	if value(c.Quota) <= 0 {
		return 0
	}
	period := value(c.Period)
	if period == 0 {
		period = 100_000
	}
	return float64(*c.Quota) / float64(period)
}

// vcpus are as many as can use a limit.
func vcpus(limit float64) int { return int(min(maxVCPUs, max(1, math.Ceil(limit)))) }

// canBecome says why a container that runs cannot have other limits: of what its guest
// was made with, it gets no more and no less while it runs. What they do not name stays.
func (c container) canBecome(l *specs.LinuxResources) error {
	const instead = "started anew it has that (in a pod, resizePolicy: RestartContainer for %s)"
	if m := l.Memory; m != nil && m.Limit != nil {
		if limit := memoryLimit(l); limit != c.LimitMiB {
			return fmt.Errorf("its limit of memory is to be %s in place of %s: a microVM keeps the memory that it was started with; "+instead, mebibytes(limit), mebibytes(c.LimitMiB), "memory")
		}
	}
	if l.CPU != nil {
		if limit := cpuLimit(l.CPU); vcpus(limit) > c.VCPUs {
			return fmt.Errorf("its limit of CPU is to be %g: its microVM has %d vCPUs as long as it runs; "+instead, limit, c.VCPUs, "cpu")
		}
	}
	return nil
}

func mebibytes(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprintf("%d MiB", n)
}

func roundUp(n, step int) int { return (n + step - 1) / step * step }

// rest refuses what is rarely asked for.
func (t translation) rest() error {
	s, l := t.spec, t.spec.Linux
	t.c.ReadOnly = s.Root != nil && s.Root.Readonly
	switch {
	case s.Hooks != nil && (len(s.Hooks.CreateContainer) > 0 || len(s.Hooks.StartContainer) > 0):
		return fmt.Errorf("the specification has hooks that run in the container's namespaces: a microVM has none on the host")
	case l.IntelRdt != nil:
		return fmt.Errorf("the container is to have a class of Intel's RDT: a microVM is not put into one")
	case len(l.NetDevices) > 0:
		return fmt.Errorf("the container is to have network devices of the host's: a microVM has none")
	case l.Personality != nil && l.Personality.Domain != specs.PerLinux:
		return fmt.Errorf("the container is to run as %s: a microVM runs linux/amd64", l.Personality.Domain)
	case l.RootfsPropagation == "shared" || l.RootfsPropagation == "rshared":
		return fmt.Errorf("the container's mounts are to be seen on the host (%s): a microVM's cannot", l.RootfsPropagation)
	}
	t.c.Hooks, t.c.Sysctls, t.c.Masked, t.c.ReadonlyPaths = s.Hooks, l.Sysctl, l.MaskedPaths, l.ReadonlyPaths
	return nil
}
