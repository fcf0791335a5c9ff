package shim

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Where others keep what they mount into containers.
const (
	emptyDirs    = "/volumes/kubernetes.io~empty-dir/" // kubelet
	imageVolumes = "/io.containerd.grpc.v1.cri/containers/"
	terminations = "/dev/termination-log" // where the kubelet has a container leave a message
)

// termination is what the kubelet mounts for that, wherever the pod wants it.
var termination = regexp.MustCompile(`/pods/[^/]+/containers/[^/]+/[0-9a-f]{8}$`)

// kernelTypes are file systems that every guest has mounted where containers
// expect them.
var kernelTypes = []string{"proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts"}

// names are files by which a container knows itself and others. Runtimes mount
// them writable; a guest has its own copy.
var names = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

func (t translation) mounts() error {
	seen := map[string]bool{}
	for _, m := range t.spec.Mounts {
		if m.Destination == "" || m.Destination[0] != '/' || strings.ContainsRune(m.Destination+m.Source, 0) {
			return fmt.Errorf("mount at %q: want an absolute path", m.Destination)
		}
		at := path.Clean(m.Destination)
		out, err := translateMount(m, at)
		if err != nil {
			return fmt.Errorf("mount at %s: %w", at, err)
		}
		if out == nil {
			continue
		}
		if out.SizeMiB == 0 && strings.Contains(path.Clean(m.Source)+"/", emptyDirs) {
			// One that is as large as the pod's memory is not limited for its own sake.
			if mib := tmpfsMiB(m.Source); mib < t.c.MemoryMiB/2 {
				out.SizeMiB = mib
			}
		}
		if seen[at] {
			return fmt.Errorf("mount at %s: something is mounted there already", at)
		}
		seen[at] = true
		t.c.Mounts = append(t.c.Mounts, *out)
	}
	return nil
}

// translateMount says what becomes of a mount; nil for what every guest has.
func translateMount(m specs.Mount, at string) (*mount, error) {
	switch {
	case slices.Contains(kernelTypes, m.Type):
		return nil, nil
	case at == "/" || at == "/proc" || at == "/sys" || at == "/dev" && m.Type != "tmpfs":
		return nil, fmt.Errorf("nothing can be put there in a microVM")
	case strings.HasPrefix(at, "/proc/"):
		return nil, fmt.Errorf("nothing can be put into a microVM's /proc")
	case m.Type == "tmpfs" && at == "/dev":
		return nil, nil
	case m.Type == "tmpfs":
		return inMemory(m, at)
	case !isBind(m):
		return nil, fmt.Errorf("a file system of type %q of the host's cannot be mounted in a microVM", m.Type)
	case !strings.HasPrefix(m.Source, "/"):
		return nil, fmt.Errorf("its source %q is no absolute path", m.Source)
	}
	source := path.Clean(m.Source)
	flags := flagsOf(m.Options)
	readOnly := slices.Contains(flags, "ro")
	switch {
	case at == "/dev/shm":
		return inMemory(specs.Mount{Options: []string{"mode=1777", "size=64m"}}, at)
	case at == terminations || termination.MatchString(source):
		return &mount{Path: at, Source: source, Flags: flags, Return: true}, nil
	case strings.HasPrefix(at, "/dev/"):
		return nil, fmt.Errorf("%s: a microVM has none of the host's devices", source)
	case strings.Contains(source+"/", emptyDirs):
		return &mount{Path: at, Mode: 0o777, Flags: flags}, nil
	case strings.Contains(source, imageVolumes) && strings.Contains(source, "/volumes/"):
		return &mount{Path: at, Image: true, Flags: flags}, nil
	case slices.Contains(names, at):
		return &mount{Path: at, Source: source, Flags: flags}, nil
	case !readOnly:
		return nil, fmt.Errorf("%s is mounted for writing: a microVM cannot write to the host's files or volumes; mount it read-only, and what is in it is copied in, or use an emptyDir or tmpfs, which is in the guest's memory", source)
	}
	return &mount{Path: at, Source: source, Flags: flags}, nil
}

// forbidding are the options that take something from who uses a mount, under their
// names for it alone and for what is mounted below it, which is copied with it.
var forbidding = map[string]string{"ro": "ro", "rro": "ro", "noexec": "noexec", "rnoexec": "noexec", "nosuid": "nosuid", "rnosuid": "nosuid",
	"nodev": "nodev", "rnodev": "nodev"}

// lifting undo one that stands before them.
var lifting = map[string]string{"rw": "ro", "rrw": "ro", "exec": "noexec", "rexec": "noexec", "suid": "nosuid", "rsuid": "nosuid", "dev": "nodev", "rdev": "nodev"}

// flagsOf are the flags among a mount's options.
func flagsOf(options []string) (flags []string) {
	for _, o := range options {
		if flag := forbidding[o]; flag != "" && !slices.Contains(flags, flag) {
			flags = append(flags, flag)
		}
		if flag := lifting[o]; flag != "" {
			flags = slices.DeleteFunc(flags, func(f string) bool { return f == flag })
		}
	}
	slices.Sort(flags)
	return flags
}

// tmpfsMiB is how much a file system in the host's memory may hold; 0: it is none. The
// kubelet mounts one for an emptyDir of the medium Memory, with its sizeLimit.
func tmpfsMiB(path string) int {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return 0
	}
	return int((int64(fs.Blocks)*fs.Bsize + 1<<20 - 1) >> 20)
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// inMemory is a tmpfs.
func inMemory(m specs.Mount, at string) (*mount, error) {
	out := &mount{Path: at, Flags: flagsOf(m.Options)}
	for _, o := range m.Options {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "size":
			n, err := bytesOf(v)
			if err != nil {
				return nil, fmt.Errorf("option %s: %w", o, err)
			}
			out.SizeMiB = int(max(1, (n-1)>>20+1))
		case "mode":
			n, err := strconv.ParseInt(v, 8, 64)
			if err != nil || n < 0 || n > 0o7777 {
				return nil, fmt.Errorf("option %s: want an octal mode", o)
			}
			out.Mode = n
		}
	}
	return out, nil
}

// bytesOf reads a size as tmpfs takes it.
func bytesOf(s string) (int64, error) {
	shift := 0
	if s != "" {
		if i := strings.IndexByte("kmg", s[len(s)-1]|0x20); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || n > 1<<40>>shift {
		return 0, fmt.Errorf("want a size such as 64m, at most 1024g")
	}
	return n << shift, nil
}
