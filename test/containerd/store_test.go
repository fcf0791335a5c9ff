package containerd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/remote/seal"
	"github.com/skep-dev/skep/shim/base/ready"
	"github.com/skep-dev/skep/shim/ledger"
	"github.com/skep-dev/skep/shim/shimtest"
)

// onHost runs a test with every containerd, whose shims share a data directory of their own and an
// object store with those of other hosts.
func onHost(t *testing.T, env []string, f func(t *testing.T, c *shimtest.Containerd, dir string)) {
	t.Helper()
	testenv.Need(t, "root", "uffd", "tap", "kernel", "mkfs", "nft", "qemu")
	dir, err := os.MkdirTemp("/var/tmp", "skep-shim-store-") // where there is O_DIRECT
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	env = append([]string{"SKEP_KERNEL_DIR=" + testenv.KernelStore(t), "SKEP_DATA_DIR=" + dir, "SKEP_RUN_DIR=" + filepath.Join(dir, "run")}, env...)
	shimtest.EachWith(t, shimtest.Options{Env: env}, func(t *testing.T, c *shimtest.Containerd) {
		c.Import("default", shimtest.ProbeImage, shimtest.Probe(t))
		f(t, c, dir)
		for _, p := range pushers(c) { // one that the store does not answer tries on
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		c.Clean()
		for _, sub := range []string{"run", "mem"} {
			if left, _ := os.ReadDir(filepath.Join(dir, sub)); len(left) > 0 {
				t.Errorf("left in %s: %v", sub, left)
			}
		}
	})
}

func pushers(c *shimtest.Containerd) (found []shimtest.Process) {
	for _, p := range c.Processes() {
		if p.Name == ready.Program && strings.HasSuffix(p.Command, " push") {
			found = append(found, p)
		}
	}
	return found
}

// await waits for something that is done behind a container's back.
func await(t *testing.T, c *shimtest.Containerd, dir, what string, every time.Duration, done func() bool) {
	t.Helper()
	for end := time.Now().Add(c.Limit(time.Minute)); !done(); time.Sleep(every) {
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "push.log"))
			t.Fatalf("%s: not within a minute\n%s\n%s", what, log, c.Log())
		}
	}
}

// TestReadyTravels makes a ready snapshot on one host, which others start from by the bucket alone, whatever
// becomes of the store and of who pushes.
func TestReadyTravels(t *testing.T) {
	s := remotetest.Serve(t)
	keyFile := filepath.Join(t.TempDir(), "store.key")
	if err := os.WriteFile(keyFile, bytes.Repeat([]byte("key of 4"), 4), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"SKEP_STORE_BUCKET=" + s.Bucket, "SKEP_STORE_ENDPOINTS=" + s.URL}
	keyed := append([]string{"SKEP_STORE_KEY_FILE=" + keyFile}, env...)
	b := s.Open(t)
	defer b.Close()
	store, err := remote.New(remote.Options{Bucket: b, Key: seal.FromFile(keyFile)})
	if err != nil {
		t.Fatal(err)
	}
	stored := func(t *testing.T) []remote.Entry {
		t.Helper()
		list, err := store.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	start := func(c *shimtest.Containerd, id string) { slowly(c, id, "--env", "K_TEST=travels from "+c.Version) }
	process := map[string]string{} // by containerd's version: when it was started, where it was made
	onHost(t, keyed, func(t *testing.T, c *shimtest.Containerd, dir string) {
		before := len(stored(t))
		s.Kill()
		start(c, "maker")
		process[c.Version] = get(c, "maker", "/start")
		if log := c.Log(); !strings.Contains(log, "booting rather than from a snapshot of the object store") || !strings.Contains(log, "connection refused") {
			t.Errorf("the log does not say that the store does not answer\n%s", log)
		}
		await(t, c, dir, "a push", 10*time.Millisecond, func() bool { return len(pushers(c)) > 0 })
		s.Start(t)
		objects := func() (n int) {
			_ = filepath.WalkDir(s.Dir, func(_ string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					n++
				}
				return nil
			})
			return n
		}
		n := objects()
		await(t, c, dir, "something pushed", time.Millisecond, func() bool { return objects() > n })
		for _, p := range pushers(c) {
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		await(t, c, dir, "the end of who pushes", 10*time.Millisecond, func() bool { return len(pushers(c)) == 0 })
		if list := stored(t); len(list) != before {
			t.Errorf("of a push that was killed the store has %v", list)
		}
		start(c, "second") // after which it is pushed
		if got := get(c, "second", "/start"); got != process[c.Version] {
			t.Errorf("the second was started at %s, the first at %s", got, process[c.Version])
		}
		await(t, c, dir, "the push", 50*time.Millisecond, func() bool { due, err := ready.Due(dir); return err == nil && len(due) == 0 })
		if list := stored(t); len(list) != before+1 {
			t.Errorf("the store has %v", list)
		}
		end(c, "maker", "second")
		if strings.Contains(c.Log(), "functionbench") {
			t.Error("the store's secret is in the log")
		}
	})
	onHost(t, keyed, func(t *testing.T, c *shimtest.Containerd, dir string) {
		start(c, "other")
		if got := get(c, "other", "/start"); got != process[c.Version] {
			t.Errorf("it was started at %s, where it was made at %s\n%s", got, process[c.Version], c.Log())
		}
		if got := get(c, "other", "/hostname"); got != "other" {
			t.Errorf("it is called %q", got)
		}
		s.Kill()
		slowly(c, "apart", "--env", "K_TEST=another of "+c.Version)
		if log := c.Log(); !strings.Contains(log, "booting rather than") {
			t.Errorf("the log does not say that the store does not answer\n%s", log)
		}
		s.Start(t)
		end(c, "other", "apart")
		if due, err := ready.Due(dir); err != nil || len(due) > 1 { // what has come is not pushed back
			t.Errorf("to be pushed are %v, %v", due, err)
		}
		records, err := ledger.Open(t.Context(), dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer records.Close()
		list, err := records.Invocations(t.Context(), api.InvocationQuery{Function: "other"})
		if err != nil || len(list) != 1 || list[0].Start != api.StartRestore || list[0].Container.Made || list[0].Container.Ready != "from the object store" {
			t.Errorf("its records are %+v, %v", list, err)
		}
	})
	onHost(t, env, func(t *testing.T, c *shimtest.Containerd, _ string) { // without the key
		start(c, "keyless")
		if got := get(c, "keyless", "/start"); got == process[c.Version] {
			t.Error("it has started from what is encrypted for others")
		}
		if log := c.Log(); !strings.Contains(log, "booting rather than") || !strings.Contains(log, "encrypted") {
			t.Errorf("the log does not say why it has booted\n%s", log)
		}
		end(c, "keyless")
	})
}
