package shim

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/guest"
)

// plain is the specification of a container that a microVM can be.
func plain() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"/app", "-x"}, Env: []string{"A=b"}, Cwd: "/srv", User: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5}}},
		Root:    &specs.Root{Path: "rootfs"},
		Linux: &specs.Linux{CgroupsPath: "/default/c", Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/n"}}},
	}
}

func annotated(kv ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Annotations = map[string]string{"other/thing": "x"}
		for i := 0; i < len(kv); i += 2 {
			s.Annotations[kv[i]] = kv[i+1]
		}
	}
}

func mounted(m ...specs.Mount) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Mounts = m }
}

func without(kind specs.LinuxNamespaceType, path string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		var left []specs.LinuxNamespace
		for _, n := range s.Linux.Namespaces {
			if n.Type != kind {
				left = append(left, n)
			} else if path != "" {
				left = append(left, specs.LinuxNamespace{Type: kind, Path: path})
			}
		}
		s.Linux.Namespaces = left
	}
}

func limited(memory, quota int64, period uint64) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	}
}

func both(fs ...func(*specs.Spec)) func(*specs.Spec) {
	return func(s *specs.Spec) {
		for _, f := range fs {
			f(s)
		}
	}
}

// What a specification says is what the guest gets.
func TestTranslate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*specs.Spec)
		pick   func(container) any
		want   any
	}{
		{"the process", nil, func(c container) any { return c.Process },
			guest.Process{Argv: []string{"/app", "-x"}, Env: []string{"A=b"}, Dir: "/srv", MakeDir: true, IDs: &guest.IDs{UID: 1000, GID: 1001, Groups: []uint32{5}}, Init: true}},
		{"a terminal", func(s *specs.Spec) {
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 24, Width: 1 << 20}
		},
			func(c container) any { return []any{c.Process.TTY, c.Process.Rows, c.Process.Cols} }, []any{true, uint16(24), uint16(65535)}},
		{"capabilities and limits", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
			s.Process.NoNewPrivileges = true
		}, func(c container) any {
			return []any{*c.Process.Capabilities, c.Process.Rlimits, c.Process.NoNewPrivileges}
		},
			[]any{guest.Capabilities{Bounding: []string{"CAP_CHOWN"}}, []guest.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}, true}},
		{"the only container of its pod", func(s *specs.Spec) { s.Annotations = map[string]string{annotationType: "container"} },
			func(c container) any { return c.Process.Neighbours }, false},
		{"one of its pod's containers", func(s *specs.Spec) {
			s.Annotations = map[string]string{annotationType: "container", annotationContainer: "app"}
		}, func(c container) any { return c.Process.Neighbours }, true},
		{"its place", nil, func(c container) any { return []any{c.NetNS, c.Cgroup, c.ReadOnly} }, []any{"/run/netns/n", "/default/c", false}},
		{"a network namespace of its own", both(without(specs.NetworkNamespace, ""), func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		}), func(c container) any { return c.NetNS }, ""},
		{"a root to be read", func(s *specs.Spec) { s.Root.Readonly = true }, func(c container) any { return c.ReadOnly }, true},
		{"sysctls and hidden paths", func(s *specs.Spec) {
			s.Linux.Sysctl, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = map[string]string{"a": "b"}, []string{"/proc/x"}, []string{"/proc/y"}
		},
			func(c container) any { return []any{c.Sysctls["a"], c.Masked, c.ReadonlyPaths} }, []any{"b", []string{"/proc/x"}, []string{"/proc/y"}}},
		{"no limits", nil, size, []any{256, 1, 0, 0.0}},
		{"limits", limited(512<<20, 150_000, 100_000), size, []any{576, 2, 512, 1.5}},
		{"odd limits", limited(500<<20+1, 50_000, 100_000), size, []any{576, 1, 501, 0.5}},
		{"a small limit", limited(1<<20, -1, 100_000), size, []any{128, 1, 1, 0.0}},
		{"no limit, as some say it", limited(-1, 0, 0), size, []any{256, 1, 0, 0.0}},
		{"a limit without a period", limited(0, 300_000, 0), size, []any{256, 3, 0, 3.0}},
		{"sized by annotation", both(limited(64<<20, 100_000, 100_000), annotated(annotationMemory, "2Gi", annotationVCPUs, "4")), size, []any{2048, 4, 64, 1.0}},
		{"what its processes may have", limited(64<<20, 100_000, 100_000), func(c container) any { return c.ProcessesMiB }, 64},
		{"what they may have, sized by annotation", both(limited(64<<20, 100_000, 100_000), annotated(annotationMemory, "2Gi")), func(c container) any { return c.ProcessesMiB }, 0},
		{"the processes of a pod that has no others", both(without(specs.PIDNamespace, "/proc/1/ns/pid"), annotated(annotationType, "container", annotationName, "app")),
			func(c container) any { return c.Process.Init }, false},
		{"settings", annotated(annotationPolicy, "reap", annotationPort, "80", annotationMemory, "512", annotationSnapshot, "off", annotationContainer, "app"),
			func(c container) any { return c.Settings }, settings{Policy: "reap", Port: 80, MemoryMiB: 512, Snapshot: snapshotOff}},
		{"Knative's port", func(s *specs.Spec) { s.Process.Env = []string{"PORT=8080", "K_SERVICE=hello"} }, func(c container) any { return c.Settings.Port }, 8080},
		{"somebody's PORT", func(s *specs.Spec) { s.Process.Env = []string{"PORT=8080"} }, func(c container) any { return c.Settings.Port }, 0},
		{"mounts that guests have", mounted(specs.Mount{Destination: "/proc", Type: "proc"}, specs.Mount{Destination: "/dev", Type: "tmpfs"}, specs.Mount{Destination: "/dev/pts", Type: "devpts"},
			specs.Mount{Destination: "/sys", Type: "sysfs"}, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup"}), mounts, []mount(nil)},
		{"memory", mounted(specs.Mount{Destination: "/run/", Type: "tmpfs", Options: []string{"nosuid", "size=65536k", "mode=755"}}), mounts, []mount{{Path: "/run", Flags: []string{"nosuid"}, SizeMiB: 64, Mode: 0o755}}},
		{"shared memory", mounted(specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/run/x/shm", Options: []string{"rbind", "ro"}}), mounts, []mount{{Path: "/dev/shm", SizeMiB: 64, Mode: 0o1777}}},
		{"a config map", mounted(bind("/etc/app", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/c", "ro")), mounts,
			[]mount{{Path: "/etc/app", Source: "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/c", Flags: []string{"ro"}}}},
		{"read-only with all below", mounted(bind("/m", "/mnt", "rro")), mounts, []mount{{Path: "/m", Source: "/mnt", Flags: []string{"ro"}}}},
		{"the pod's sysctls", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"a": "own"}
			inherit(s, map[string]string{"a": "pod's", "b": "pod's"})
		}, func(c container) any { return c.Sysctls }, map[string]string{"a": "own", "b": "pod's"}},
		{"an emptyDir", mounted(bind("/cache", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache", "rw")), mounts, []mount{{Path: "/cache", Mode: 0o777}}},
		{"a volume of the image's", mounted(bind("/data", "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/c/volumes/abc", "rw")), mounts, []mount{{Path: "/data", Image: true}}},
		{"names", mounted(bind("/etc/hosts", "/h", "rw"), bind("/etc/resolv.conf", "/r", "rw"), bind("/dev/termination-log", "/t", "rw")), mounts,
			[]mount{{Path: "/etc/hosts", Source: "/h"}, {Path: "/etc/resolv.conf", Source: "/r"}, {Path: "/dev/termination-log", Source: "/t", Return: true}}},
		{"a device that guests have", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null"}} }, func(c container) any { return c.MemoryMiB }, 256},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := plain()
			if tt.change != nil {
				tt.change(s)
			}
			c, err := translate(s)
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.pick(c); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func size(c container) any   { return []any{c.MemoryMiB, c.VCPUs, c.LimitMiB, c.CPUs} }
func mounts(c container) any { return c.Mounts }

func bind(at, source, mode string) specs.Mount {
	return specs.Mount{Destination: at, Type: "bind", Source: source, Options: []string{"rbind", mode}}
}

// What a microVM cannot be is refused, by name.
func TestTranslateRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*specs.Spec)
		says   string
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, "no process"},
		{"nothing to run", func(s *specs.Spec) { s.Process.Args = nil }, "nothing to run"},
		{"no Linux", func(s *specs.Spec) { s.Linux = nil }, "Linux"},
		{"a NUL", func(s *specs.Spec) { s.Process.Env = []string{"a\x00b"} }, "NUL"},
		{"a relative directory", func(s *specs.Spec) { s.Process.Cwd = "x" }, "working directory"},
		{"scheduling", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} }, "scheduling"},
		{"the host's network", without(specs.NetworkNamespace, ""), "hostNetwork"},
		{"the host's network, by the pause container's", without(specs.NetworkNamespace, "/proc/self/ns/net"), "hostNetwork"},
		{"the host's IPC, by the pause container's", without(specs.IPCNamespace, "/proc/self/ns/ipc"), "hostIPC"},
		{"the host's processes, by the pause container's", without(specs.PIDNamespace, "/proc/self/ns/pid"), "hostPID"},
		{"the host's processes", without(specs.PIDNamespace, ""), "hostPID"},
		{"the pod's processes", without(specs.PIDNamespace, "/proc/1/ns/pid"), "shareProcessNamespace"},
		{"the processes of a pod that may have others", both(without(specs.PIDNamespace, "/proc/1/ns/pid"), annotated(annotationType, "container", annotationName, "app", annotationContainer, "app")), "shareProcessNamespace"},
		{"the processes of one of Knative's pods", both(without(specs.PIDNamespace, "/proc/1/ns/pid"), annotated(annotationType, "container", annotationName, knativeUser)), "shareProcessNamespace"},
		{"the host's IPC", without(specs.IPCNamespace, ""), "hostIPC"},
		{"the host's name", without(specs.UTSNamespace, ""), "host name"},
		{"the host's mounts", without(specs.MountNamespace, ""), "mounts"},
		{"another clock", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} }, "clock"},
		{"a block device", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b"}} }, "/dev/sda"},
		{"privileged", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Access: "rwm"}}}
		}, "privileged"},
		{"a host path for writing", mounted(bind("/data", "/srv/data", "rw")), "/srv/data is mounted for writing"},
		{"a device by a mount", mounted(bind("/dev/fuse", "/dev/fuse", "ro")), "devices"},
		{"a file system of the host's", mounted(specs.Mount{Destination: "/m", Type: "nfs", Source: "h:/x"}), `"nfs"`},
		{"over the root", mounted(bind("/", "/srv", "ro")), "nothing can be put there"},
		{"in /proc", mounted(specs.Mount{Destination: "/proc/scsi", Type: "tmpfs"}), "into a microVM's /proc"},
		{"twice", mounted(bind("/a", "/x", "ro"), bind("/a/", "/y", "ro")), "already"},
		{"a relative mount", mounted(bind("a", "/x", "ro")), "absolute"},
		{"a relative source", mounted(bind("/a", "x", "ro")), "absolute"},
		{"a size that is none", mounted(specs.Mount{Destination: "/m", Type: "tmpfs", Options: []string{"size=much"}}), "size"},
		{"a mode that is none", mounted(specs.Mount{Destination: "/m", Type: "tmpfs", Options: []string{"mode=888"}}), "octal"},
		{"hooks inside", func(s *specs.Spec) { s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/x"}}} }, "hooks"},
		{"mounts that the host sees", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" }, "rshared"},
		{"an unknown annotation", annotated("skep.dev/polcy", "reap"), "did you mean skep.dev/policy"},
		{"an unknown policy", annotated(annotationPolicy, "reep"), "did you mean reap"},
		{"a port that is none", annotated(annotationPort, "0"), "1 to 65535"},
		{"a port with a plus", annotated(annotationPort, "+80"), "1 to 65535"},
		{"too little memory", annotated(annotationMemory, "64Mi"), "128Mi"},
		{"memory in no unit", annotated(annotationMemory, "1G"), "such as"},
		{"less memory than the limit", both(limited(1<<30, 0, 0), annotated(annotationMemory, "512Mi")), "limit is 1024 MiB"},
		{"more memory than there can be", limited(1<<62, 0, 0), "at most"},
		{"too many CPUs", annotated(annotationVCPUs, "1000"), "1 to 32"},
		{"a snapshot, perhaps", annotated(annotationSnapshot, "maybe"), "ready, base or off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := plain()
			tt.change(s)
			if _, err := translate(s); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want an error with %q", err, tt.says)
			}
		})
	}
}

// Whatever containerd's file holds: an error, or a container within its bounds.
func FuzzTranslate(f *testing.F) {
	s := plain()
	both(limited(512<<20, 150_000, 100_000), annotated(annotationMemory, "2Gi"), mounted(bind("/etc/app", "/c", "ro"), specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"size=1g"}}))(s)
	b, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"process":{"args":["x"]},"linux":{"resources":{"cpu":{"quota":9223372036854775807,"period":1}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSpec(b)
		if err != nil {
			return
		}
		_, _ = new(chooser).kindOf("c", s)
		c, err := translate(s)
		if err != nil {
			return
		}
		if c.MemoryMiB < minMemoryMiB || c.MemoryMiB > maxMemoryMiB || c.VCPUs < 1 || c.VCPUs > maxVCPUs || c.MemoryMiB < c.LimitMiB || len(c.Process.Argv) == 0 {
			t.Errorf("%s\nbecomes %+v", b, c)
		}
		for _, m := range c.Mounts {
			if m.Path == "" || m.Path[0] != '/' || strings.Contains(m.Path, "..") && strings.Contains("/"+m.Path+"/", "/../") || m.Source != "" && m.Source[0] != '/' {
				t.Errorf("%s\nhas mount %+v", b, m)
			}
		}
	})
}

func changed(by func(*specs.Spec)) *specs.Spec {
	s := plain()
	if by != nil {
		by(s)
	}
	return s
}

// What runs may have other limits of CPU, as far as its vCPUs can use them; of memory it
// keeps what it has, and is not said to have got what it has not.
func TestCanBecome(t *testing.T) {
	for _, tt := range []struct {
		name string
		was  func(*specs.Spec)
		to   func(*specs.Spec)
		want string // in the error; "" is none
	}{
		{"nothing", limited(64<<20, 100_000, 100_000), nil, ""},
		{"the same", limited(64<<20, 100_000, 100_000), limited(64<<20, 100_000, 100_000), ""},
		{"less CPU", limited(64<<20, 100_000, 100_000), limited(64<<20, 20_000, 100_000), ""},
		{"more CPU of what there is", limited(64<<20, 110_000, 100_000), limited(64<<20, 200_000, 100_000), ""},
		{"more than its vCPUs", limited(64<<20, 100_000, 100_000), limited(64<<20, 101_000, 100_000), "its limit of CPU is to be 1.01: its microVM has 1 vCPUs"},
		{"no limit of CPU", limited(64<<20, 100_000, 100_000), limited(64<<20, -1, 100_000), ""},
		{"more memory", limited(64<<20, 0, 0), limited(65<<20, 0, 0), "is to be 65 MiB in place of 64 MiB"},
		{"less memory", limited(64<<20, 0, 0), limited(63<<20, 0, 0), "is to be 63 MiB in place of 64 MiB"},
		{"a limit of memory", nil, limited(64<<20, 0, 0), "is to be 64 MiB in place of none"},
		{"none any more", limited(64<<20, 0, 0), limited(-1, 0, 0), "is to be none in place of 64 MiB"},
		{"more, in a guest sized by annotation", both(limited(64<<20, 0, 0), annotated(annotationMemory, "1Gi")), limited(128<<20, 0, 0), "is to be 128 MiB"},
		{"more CPU, in a guest sized by annotation", both(limited(64<<20, 100_000, 100_000), annotated(annotationVCPUs, "4")), limited(64<<20, 400_000, 100_000), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := translate(changed(tt.was))
			if err != nil {
				t.Fatal(err)
			}
			l := &specs.LinuxResources{}
			if tt.to != nil {
				l = changed(tt.to).Linux.Resources
			}
			err = c.canBecome(l)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), "RestartContainer") {
				t.Errorf("%v: it does not say what to do", err)
			}
		})
	}
}
