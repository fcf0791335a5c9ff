package containerd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
	"github.com/skep-dev/skep/shim/shimtest"
	"golang.org/x/sys/unix"
)

// slowly is a server that takes a second to start, and says where it serves.
func slowly(c *shimtest.Containerd, id string, flags ...string) time.Duration {
	began := time.Now()
	c.Starts(id, args("run", "-d", vm, "--env", "PORT=8080", flags, shimtest.ProbeImage, id, "serve", "8080", "1")...)
	return time.Since(began)
}

// The second container of a specification goes on from where the first was ready: its
// process is the same one, and all else its own.
func TestReady(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		file := filepath.Join(c.Dir, "setting")
		if err := os.WriteFile(file, []byte("content of "+c.Dir), 0o644); err != nil {
			t.Fatal(err)
		}
		mounted := []string{"--mount", "type=bind,src=" + file + ",dst=/etc/setting,options=rbind:ro"}
		seen := map[string]string{}
		for _, id := range []string{"first", "second", "third"} {
			t.Logf("%s started after %v", id, slowly(c, id, mounted...))
			if h := get(c, id, "/hostname"); h != id {
				t.Errorf("%s is called %q", id, h)
			}
			if f := get(c, id, "/file/etc/setting"); f != "content of "+c.Dir {
				t.Errorf("its file is %q", f)
			}
			if h := get(c, id, "/env/HOSTNAME"); h != "" {
				t.Errorf("its HOSTNAME is %q", h)
			}
			start, random := get(c, id, "/start"), get(c, id, "/random")
			if was := seen["start"]; was != "" && was != start {
				t.Errorf("%s was started anew\n%s", id, c.Log())
			}
			if seen[random] != "" {
				t.Errorf("%s draws %s, as another did", id, random)
			}
			seen["start"], seen[random] = start, id
			if out := c.Must("task", "exec", "--exec-id", "e", id, "/bin/hostname"); strings.TrimSpace(out) != id {
				t.Errorf("exec says it is called %q", out)
			}
		}
		// What changes on the host comes after.
		if err := os.WriteFile(file, []byte("another"), 0o644); err != nil {
			t.Fatal(err)
		}
		for limit := time.Now().Add(time.Minute); get(c, "third", "/file/etc/setting") != "another"; time.Sleep(200 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("its file has not changed\n%s", c.Log())
			}
		}
		end(c, "second", "third")
		c.Must("task", "kill", "--signal", "SIGTERM", "first")
		if code := c.Delete("first"); code != "143" && code != "2" {
			t.Errorf("it has ended with %q", code)
		}
		// Another file is another snapshot.
		slowly(c, "other", mounted...)
		if start := get(c, "other", "/start"); start == seen["start"] {
			t.Error("a container with another file shares the snapshot")
		}
		end(c, "other")
		// A command that says when it is ready runs beside its process, which is the first.
		command := append(mounted, "--annotation", `skep.dev/ready-command=["/bin/serves"]`) // a comma would be ctr's
		slowly(c, "asked1", command...)
		slowly(c, "asked2", command...)
		if a, b := get(c, "asked1", "/start"), get(c, "asked2", "/start"); a != b {
			t.Errorf("with a command they are started apart: %s, %s\n%s", a, b, c.Log())
		}
		if out := c.Must("task", "exec", "--exec-id", "e", "asked2", "/bin/cat", "/proc/1/cmdline"); !strings.Contains(out, "serve") {
			t.Errorf("its first process is %q", out)
		}
		end(c, "asked1", "asked2")
	})
}

// planted looks for a text in all files of the data directory.
func planted(t *testing.T, texts ...string) {
	t.Helper()
	err := filepath.WalkDir(shimtest.DataDir(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		// Memory files are holes for the most part.
		for end := int64(0); ; {
			at, err := f.Seek(end, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				return nil
			}
			if err == nil {
				end, err = f.Seek(at, unix.SEEK_HOLE)
			}
			if err != nil {
				return err
			}
			b := make([]byte, end-at)
			if _, err := f.ReadAt(b, at); err != nil {
				return err
			}
			for _, text := range texts {
				if bytes.Contains(b, []byte(text)) {
					t.Errorf("%s holds %q", path, text)
				}
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// What may be secret is in no file: with such a variable there is no ready snapshot,
// and a file gets its content when that is made. Who reads it before has it.
func TestReadySecrets(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		const inEnv, inFile = "planted-7d1c-in-a-variable", "planted-7d1c-in-a-file"
		file := filepath.Join(t.TempDir(), "token") // not in the data directory
		if err := os.WriteFile(file, []byte(inFile), 0o600); err != nil {
			t.Fatal(err)
		}
		mounted := []string{"--mount", "type=bind,src=" + file + ",dst=/run/secrets/token,options=rbind:ro", "--annotation", "skep.dev/port=8080"}
		log := filepath.Join(c.Dir, "reads.log")
		for _, tt := range []struct {
			name   string
			flags  []string
			more   []string // arguments
			shared bool
		}{
			{"variable", []string{"--env", "PORT=8080", "--env", "PASSWORD=" + inEnv}, nil, false},
			{"file", mounted, nil, true},
			{"reads", append([]string{"--log-uri", "file://" + log}, mounted...), []string{"/run/secrets/token"}, false},
		} {
			starts := map[string]bool{}
			for _, id := range []string{tt.name + "1", tt.name + "2"} {
				c.Starts(id, args("run", "-d", vm, tt.flags, shimtest.ProbeImage, id, "serve", "8080", "0.5", tt.more)...)
				starts[get(c, id, "/start")] = true
				if got := get(c, id, "/env/PASSWORD") + get(c, id, "/file/run/secrets/token"); !strings.Contains(got, "planted-7d1c") {
					t.Errorf("%s has no secret: %q", id, got)
				}
				if told := get(c, id, "/told"); tt.more != nil && told != inFile {
					t.Errorf("%s was told %q at its start", id, told)
				}
				planted(t, inEnv, inFile)
			}
			if (len(starts) == 1) != tt.shared {
				t.Errorf("%s: started as %v\n%s", tt.name, starts, c.Log())
			}
			end(c, tt.name+"1", tt.name+"2")
		}
		if b, err := os.ReadFile(log); strings.Contains(string(b), `told ""`) || strings.Count(string(b), inFile) != 2 {
			t.Errorf("what was started in vain shows in the log: %q, %v", b, err)
		}
		// Its owner says that it is none.
		open := []string{"--env", "GREETING=hello", "--annotation", "skep.dev/snapshot=ready", "--annotation", "skep.dev/ready-path=/health"}
		slowly(c, "open1", open...)
		slowly(c, "open2", open...)
		if a, b := get(c, "open1", "/start"), get(c, "open2", "/start"); a != b {
			t.Errorf("with the annotation they are started anew: %s, %s\n%s", a, b, c.Log())
		}
		end(c, "open1", "open2")
	})
}

// A process that does not survive being a clone is started anew, which its user does
// not see; and one that ends before it is ready has ended.
func TestReadyFails(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		port := []string{"--annotation", "skep.dev/port=8080", "--annotation", "skep.dev/ready-path=/health"}
		for i, id := range []string{"rigid1", "rigid2", "rigid3"} {
			c.Starts(id, args("run", "-d", vm, port, shimtest.ProbeImage, id, "rigid", "8080")...)
			if h := get(c, id, "/hostname"); h != id {
				t.Errorf("%s is called %q", id, h)
			}
			if log := c.Log(); i == 1 && !strings.Contains(log, "starting without a ready snapshot") || i == 2 && !strings.Contains(log, `ready="its process has ended`) {
				t.Errorf("%s: the log does not say what became of it\n%s", id, log)
			}
		}
		end(c, "rigid1", "rigid2", "rigid3")
		if r := c.Run(args("run", "--rm", vm, port, shimtest.ProbeImage, "short", "exit", "42")...); r.Code != 42 {
			t.Errorf("exit code %d, want 42: %s", r.Code, r.Stderr)
		}
	})
}

// Whatever happens while a ready snapshot is made: nothing is left, and the next one
// is made. Several at once do not wait for each other.
func TestReadyKilled(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		begin := func(id string, seconds string) chan shimtest.Result {
			t.Helper()
			done := make(chan shimtest.Result, 1)
			go func() {
				done <- c.Run(args("run", "-d", vm, "--env", "PORT=8080", shimtest.ProbeImage, id, "serve", "8080", seconds)...)
			}()
			for limit := time.Now().Add(time.Minute); !strings.Contains(c.Log(), "container="+id+" "); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatalf("%s does not start\n%s", id, c.Log())
				}
			}
			return done
		}
		done := begin("asked", "40")
		c.Must("task", "kill", "--signal", "SIGTERM", "asked")
		if r := <-done; r.Code != 0 {
			t.Errorf("%+v", r)
		}
		c.Stopped("asked")
		c.Remove("asked")

		done = begin("shim", "40")
		for _, p := range c.Shims() {
			if strings.Contains(p.Command, "-id shim ") {
				if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		if r := <-done; r.Code == 0 {
			t.Errorf("its shim was killed: %+v", r)
		}
		c.Remove("shim")

		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				c.Run(args("run", "-d", vm, "--env", "PORT=8080", shimtest.ProbeImage, fmt.Sprint("crowd", i), "serve", "8080", "1.5")...)
			})
		}
		wg.Wait()
		starts := map[string]bool{}
		for i := range 3 {
			starts[get(c, fmt.Sprint("crowd", i), "/start")] = true
		}
		slowly2 := args("run", "-d", vm, "--env", "PORT=8080", shimtest.ProbeImage, "later", "serve", "8080", "1.5")
		c.Starts("later", slowly2...)
		if start := get(c, "later", "/start"); len(starts) != 3 || !starts[start] {
			t.Errorf("the crowd was started as %v, one later as %s\n%s", starts, start, c.Log())
		}
		end(c, "crowd0", "crowd1", "crowd2", "later")
	})
}

// What a client asks for as soon as the container is there is in the working set, as
// what a function's first request touches is in a node's.
func TestReadyWorkingSet(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		const mib = 16
		made := func() map[string]bool {
			all := map[string]bool{}
			found, _ := filepath.Glob(filepath.Join(shimtest.DataDir(t), "snapshots", "ready-*"))
			for _, dir := range found {
				all[dir] = true
			}
			return all
		}
		before := made()
		slowly(c, "first", "--env", "K_TEST=working set of "+c.Version, "--annotation", "skep.dev/policy=reap")
		if got := get(c, "first", fmt.Sprintf("/touch/%d", mib)); got != fmt.Sprint("touched ", mib) {
			t.Errorf("it says %q", got)
		}
		end(c, "first")
		for dir := range made() {
			if before[dir] {
				continue
			}
			st, err := os.Stat(filepath.Join(dir, "memory"))
			if err != nil {
				t.Fatal(err)
			}
			trace, err := workingset.LoadTrace(filepath.Join(dir, "trace"), workingset.Of{SnapshotID: filepath.Base(dir), MemorySize: st.Size()})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(trace.Touches); n < mib<<20/4096 {
				t.Errorf("the working set has %d pages, and %d MiB were touched", n, mib)
			}
			return
		}
		t.Errorf("no ready snapshot was made\n%s", c.Log())
	})
}
