package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// ref is the image's name, in which `skep` is the entry point.
const ref = "skep.local/skep:latest"

// runImage has containerd run a command in the image of the tools, by runc.
func runImage(t *testing.T, f func(t *testing.T, run func(args ...string) string)) {
	needPackages(t)
	testenv.Need(t, "root", "mmdebstrap", "uffd", "tap", "runc", "containerd")
	archive := kept("skep-image.tar")
	if archive == "" {
		archive = filepath.Join(t.TempDir(), "skep.tar")
	}
	if _, err := os.Stat(archive); err != nil {
		cmd := exec.CommandContext(t.Context(), filepath.Join(tree(t), "packaging", "image.sh"), archive+".new")
		cmd.Env = append(os.Environ(), "VERSION="+older, "SOURCE_DATE_EPOCH=1750000000")
		if mirror := os.Getenv(mirrorEnv); mirror != "" {
			cmd.Env = append(cmd.Env, "MIRROR="+mirror)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("making the image: %v\n%s", err, out)
		}
		if err := os.Rename(archive+".new", archive); err != nil { // else a half one would be kept
			t.Fatal(err)
		}
	}
	shimtest.Each(t, func(t *testing.T, c *shimtest.Containerd) {
		c.Must("images", "import", archive)
		f(t, func(args ...string) string {
			t.Helper()
			all := append([]string{"run", "--rm", "--runtime", "io.containerd.runc.v2", "--privileged", "--net-host", ref, "tools"}, args...)
			out, err := c.Ctr(all...).CombinedOutput() // a demonstration takes longer than other commands may
			if err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
			return string(out)
		})
	})
}

// The image of the tools has all that skep needs, in a container of runc's.
func TestImage(t *testing.T) {
	runImage(t, func(t *testing.T, run func(...string) string) {
		if out := run("skep", "version"); !strings.HasPrefix(out, "skep ") {
			t.Errorf("it says %s", out)
		}
		out := run("skep", "doctor")
		for _, want := range []string{"ok    userfaultfd", "ok    tap", "ok    qemu", "ok    guest kernel"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in %s", want, out)
			}
		}
	})
}

// And microVMs run in it.
func TestImageRuns(t *testing.T) {
	runImage(t, func(t *testing.T, run func(...string) string) {
		if out := run("skep", "demo"); !strings.Contains(out, "restore reap") {
			t.Errorf("the demonstration says %s", out)
		}
	})
}
