package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/skep-dev/skep/internal/testenv"
)

// A name is systemd's or a path, whatever the runtime's options say.
func TestCgroupNames(t *testing.T) {
	for name, want := range map[string]bool{
		"system.slice:cri-containerd:abc": true, ":skep:abc": true, "kubepods-burstable.slice:cri-containerd:abc": true,
		"/default/abc": false, "default/a:b:c": false, "abc": false, "a:b": false, "/kubepods.slice/x.scope": false,
	} {
		if got := isSystemds(name); got != want {
			t.Errorf("%q is one of systemd's: %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"/", "/.."} {
		var r *refusal
		if g, err := openGroup(name); !errors.As(err, &r) {
			t.Errorf("cgroup %q: %v, %v; want it refused", name, g, err)
		}
	}
}

// What bounds a VMM is the container's, but for its memory.
func TestCgroupLimits(t *testing.T) {
	shares, quota, period, memory, weight := uint64(2048), int64(50_000), uint64(100_000), int64(1<<30), uint16(300)
	r := limits(&specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "0-1", Mems: "0"},
		Memory:  &specs.LinuxMemory{Limit: &memory},
		BlockIO: &specs.LinuxBlockIO{Weight: &weight, ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle(8, 0, 1000)}},
	}, 256)
	if r.Memory != 256<<20 || r.CpuQuota != quota || r.CpuPeriod != period || r.CpuShares != shares || r.CpuWeight < 100 || r.CpusetCpus != "0-1" || r.CpusetMems != "0" {
		t.Errorf("limits of memory and CPU: %+v", r)
	}
	if r.BlkioWeight != weight || len(r.BlkioThrottleReadBpsDevice) != 1 || r.BlkioThrottleReadBpsDevice[0].String() != "8:0 1000" {
		t.Errorf("limits of block I/O: %+v", r)
	}
}

func throttle(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return d
}

// VMMs that follow each other in a room are in its cgroup, whoever makes that, and
// the first that systemd removes is not the last.
func TestCgroupOfTheNext(t *testing.T) {
	testenv.Need(t, "root")
	id := fmt.Sprintf("test%d", os.Getpid())
	names := map[string]string{"/skep-" + id: "/skep-" + id}
	if testenv.Has("systemd") {
		names["skep"+id+".slice:skep:a"] = "/skep" + id + ".slice/skep-a.scope"
	}
	for name, at := range names {
		t.Run(name, func(t *testing.T) {
			r := &room{container: container{Cgroup: name}, spec: &specs.Spec{Linux: &specs.Linux{}}, memory: 64}
			for i := range 3 {
				cmd := exec.Command("sleep", "1000")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				err := r.started(cmd.Process.Pid)
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
				if err != nil || !strings.Contains(string(b), ":"+at+"\n") {
					t.Errorf("process %d of it is in %s (%v), want %s", i, b, err, at)
				}
				if _, err := r.group.Load().stats(); err != nil {
					t.Errorf("its counters: %v", err)
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if r.group.Load().oomKilled() {
					t.Error("the kernel is said to have ended what the test has")
				}
			}
			g := r.group.Load()
			if err := g.remove(); err != nil || g.manager.Exists() {
				t.Errorf("it is left: %v", err)
			}
		})
	}
}

// runc's service takes its own options only, and has to be told of systemd's cgroups.
func TestRuncOptions(t *testing.T) {
	pack := func(v any) *anypb.Any {
		a, err := typeurl.MarshalAnyToProto(v)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	plain, systemds := &specs.Spec{Linux: &specs.Linux{CgroupsPath: "/a/b"}}, &specs.Spec{Linux: &specs.Linux{CgroupsPath: "a.slice:b:c"}}
	for _, tt := range []struct {
		name   string
		given  *anypb.Any
		spec   *specs.Spec
		binary string
		want   bool
		err    string
	}{
		{"none", nil, plain, "", false, ""},
		{"none, with a cgroup of systemd's", nil, systemds, "", true, ""},
		{"runc's", pack(&options.Options{BinaryName: "crun"}), systemds, "crun", true, ""},
		{"runc's, of systemd by themselves", pack(&options.Options{SystemdCgroup: true}), plain, "", true, ""},
		{"a table", pack(&runtimeoptions.Options{ConfigBody: []byte("SystemdCgroup = true\nBinaryName = \"crun\"\n")}), systemds, "crun", true, ""},
		{"a broken table", pack(&runtimeoptions.Options{ConfigBody: []byte("=")}), plain, "", false, "runtime's options"},
		{"another's", pack(&specs.Process{}), plain, "", false, "want runc's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := runcOptions(tt.given, tt.spec)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("%v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			v, err := typeurl.UnmarshalAny(a)
			if err != nil {
				t.Fatal(err)
			}
			if o, ok := v.(*options.Options); !ok || o.SystemdCgroup != tt.want || o.BinaryName != tt.binary {
				t.Errorf("%v, want %v, %q", v, tt.want, tt.binary)
			}
		})
	}
}
