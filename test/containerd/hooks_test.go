package containerd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/shim/shimtest"
)

// A specification's hooks run on the host, know the container by the VMM, in whose
// network it is, and are heard when they fail; what undoes them runs whatever
// becomes of the container.
func TestHooks(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		// hooked is a container whose hooks tell of themselves; one of them fails.
		hooked := func(id, failing string) (flags []string, ran func() []string) {
			dir := filepath.Join(c.Dir, id+"-hooks")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			hook := func(kind string) []specs.Hook {
				script := `cat >$0.state; pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/' $0.state); readlink /proc/self/ns/mnt /proc/self/ns/net /proc/$pid/ns/net >$0.ns; echo $0 >>$1`
				if kind == failing {
					script += "; echo as it was told to >&2; exit 1"
				}
				return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script, filepath.Join(dir, kind), filepath.Join(dir, "order")}, Env: []string{"PATH=/usr/bin:/bin"}}}
			}
			path := c.Spec(id, func(s *specs.Spec) {
				//lint:ignore SA1019 runtimes still have to run them
				s.Hooks = &specs.Hooks{Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), Poststart: hook("poststart"), Poststop: hook("poststop")}
			})
			return args("run", "-d", vm, "--config", path, id), func() (names []string) {
				b, _ := os.ReadFile(filepath.Join(dir, "order"))
				for name := range strings.Lines(string(b)) {
					names = append(names, filepath.Base(strings.TrimSpace(name)))
				}
				return names
			}
		}
		flags, ran := hooked("good", "")
		c.Starts("good", flags...)
		vmm := c.VMM("good")
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", vmm))
		if err != nil {
			t.Fatal(err)
		}
		for kind, status := range map[string]specs.ContainerState{"prestart": specs.StateCreating, "createRuntime": specs.StateCreating, "poststart": specs.StateRunning} {
			path := filepath.Join(c.Dir, "good-hooks", kind)
			b, _ := os.ReadFile(path + ".state")
			var state specs.State
			if err := json.Unmarshal(b, &state); err != nil || state.ID != "good" || state.Pid != vmm || state.Status != status {
				t.Errorf("%s reads %s (%v), want status %s and process %d", kind, b, err, status, vmm)
			}
			b, _ = os.ReadFile(path + ".ns")
			if want := []string{c.Namespace("mnt"), c.Namespace("net"), own}; !slices.Equal(strings.Fields(string(b)), want) {
				t.Errorf("%s ran in %s, want %v", kind, b, want)
			}
		}
		end(c, "good")
		if want := []string{"prestart", "createRuntime", "poststart", "poststop"}; !slices.Equal(ran(), want) {
			t.Errorf("the hooks that ran are %v, want %v", ran(), want)
		}

		// One that fails before the start has the create call fail, and is undone.
		flags, ran = hooked("bad", "createRuntime")
		if r := c.Run(flags...); r.Code == 0 || !strings.Contains(r.Stderr, "createRuntime hook 0 (/bin/sh)") || !strings.Contains(r.Stderr, "as it was told to") {
			t.Errorf("a hook that fails: %d %s", r.Code, r.Stderr)
		}
		purge(t, c, "bad")
		if want := []string{"prestart", "createRuntime", "poststop"}; !slices.Equal(ran(), want) {
			t.Errorf("the hooks that ran are %v, want %v", ran(), want)
		}

		// Afterwards one that fails changes nothing; nor does it that the shim is killed.
		flags, ran = hooked("late", "poststart")
		c.Starts("late", flags...)
		if r := get(c, "late", "/"); r != "hello" {
			t.Errorf("after a poststart hook that failed it answers %q", r)
		}
		if err := syscall.Kill(c.Shim("late"), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		purge(t, c, "late")
		want := []string{"prestart", "createRuntime", "poststart", "poststop"}
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && !slices.Equal(ran(), want); {
			time.Sleep(20 * time.Millisecond)
		}
		if !slices.Equal(ran(), want) {
			t.Errorf("the hooks that ran are %v, want %v", ran(), want)
		}
	})
}
