package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// vm are the flags of a container that becomes a microVM.
var vm = []string{"--runtime", "io.containerd.skep.v2"}

// eachVM runs a test with every containerd, where microVMs run.
func eachVM(t *testing.T, f func(t *testing.T, c *shimtest.Containerd)) {
	t.Helper()
	eachVMWith(t, shimtest.Options{}, f)
}

func eachVMWith(t *testing.T, opts shimtest.Options, f func(t *testing.T, c *shimtest.Containerd)) {
	t.Helper()
	testenv.Need(t, "root", "uffd", "tap", "kernel", "mkfs", "nft")
	if !testenv.Has("kvm") || !testenv.Has("firecracker") {
		testenv.Need(t, "qemu")
	}
	dir := shimtest.DataDir(t)
	opts.Env = append(opts.Env, "SKEP_KERNEL_DIR="+testenv.KernelStore(t), "SKEP_DATA_DIR="+dir, "SKEP_RUN_DIR="+filepath.Join(dir, "run"))
	shimtest.EachWith(t, opts, func(t *testing.T, c *shimtest.Containerd) {
		c.Import("default", shimtest.ProbeImage, shimtest.Probe(t))
		f(t, c)
		c.Clean()
		for _, sub := range []string{"run", "mem", "claims"} {
			if left, _ := os.ReadDir(filepath.Join(dir, sub)); len(left) > 0 {
				t.Errorf("left in %s: %v", sub, left)
			}
		}
	})
}

// once runs a container to its end.
func once(c *shimtest.Containerd, id string, command ...string) shimtest.Result {
	return c.Run(args("run", "--rm", vm, shimtest.ProbeImage, id, command)...)
}

// end ends a container that runs, and removes it.
func end(c *shimtest.Containerd, ids ...string) {
	for _, id := range ids {
		c.Must("task", "kill", "--signal", "SIGKILL", id)
		c.Remove(id)
	}
}

// A container's output, exit code, environment, user and input are what they
// are under runc.
func TestRun(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		for i, tt := range []struct {
			flags, command []string
			code           int
			want           string
		}{
			{nil, []string{"echo", "hi", "there"}, 0, "hi there\n"},
			{nil, []string{"exit", "42"}, 42, ""},
			{[]string{"--cwd", "/tmp"}, []string{"id"}, 0, "0 0"},
			{[]string{"--env", "A=b c"}, []string{"env"}, 0, "A=b c\n"},
			{[]string{"--cwd", "/new/dir"}, []string{"cwd"}, 0, "/new/dir\n"},
			{[]string{"--read-only"}, []string{"write", "/file", "x"}, 1, ""},
			{nil, []string{"/bin/nothing"}, 1, ""},
			{nil, []string{"burst", "3000000"}, 0, strings.Repeat("0123456789abcde\n", 1000)},
			{[]string{"--mount", "type=tmpfs,dst=/scratch,options=size=1m"}, []string{"mounts"}, 0, "/scratch tmpfs"},
		} {
			for _, runtime := range [][]string{vm, nil} {
				r := c.Run(args("run", "--rm", runtime, tt.flags, shimtest.ProbeImage, fmt.Sprintf("c%d-%d", i, len(runtime)), tt.command)...)
				if r.Code != tt.code || !strings.Contains(r.Stdout, tt.want) {
					t.Errorf("%v %v %v: exit code %d, want %d; %d bytes: %.300q; %s", runtime, tt.flags, tt.command, r.Code, tt.code, len(r.Stdout), r.Stdout, r.Stderr)
				}
				if tt.command[0] == "burst" && len(r.Stdout) != 3000000 {
					t.Errorf("%v: of 3000000 bytes %d came", runtime, len(r.Stdout))
				}
			}
		}
		r := c.RunWith(strings.NewReader("one\ntwo\n"), args("run", "--rm", vm, shimtest.ProbeImage, "in", "read")...)
		if r.Code != 0 || r.Stdout != "read one\nread two\nend\n" {
			t.Errorf("input: %d, %q, %s", r.Code, r.Stdout, r.Stderr)
		}
	})
}

// What can be done to a container that runs.
func TestTask(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		began := time.Now()
		c.Starts("srv", args("run", "-d", vm, "--env", "SECRET=planted-in-the-environment", shimtest.ProbeImage, "srv", "serve", "8080")...)
		t.Log("started after", time.Since(began))
		for _, p := range c.Processes() {
			t.Logf("%s: %s", p.Name, resident(p.PID))
		}
		if r := get(c, "srv", "/"); r != "hello" {
			t.Errorf("it answers %q", r)
		}
		if out := c.Must("task", "exec", "--exec-id", "e1", "srv", "/bin/echo", "from", "inside"); out != "from inside\n" {
			t.Errorf("exec says %q", out)
		}
		if r := c.Run("task", "exec", "--exec-id", "e2", "srv", "/bin/exit", "7"); r.Code != 7 {
			t.Errorf("exec ended with %d, want 7", r.Code)
		}
		if out := c.Must("task", "exec", "--exec-id", "e4", "--user", "1000:1000", "srv", "/bin/id"); !strings.HasPrefix(out, "1000 1000") {
			t.Errorf("exec as a user says %q", out)
		}
		if r := c.Run("task", "exec", "--exec-id", "e3", "srv", "/bin/nothing"); r.Code == 0 || !strings.Contains(r.Stderr, "/bin/nothing") {
			t.Errorf("exec of what is not there: %d, %s", r.Code, r.Stderr)
		}
		r := c.RunWith(strings.NewReader("one\n"), "task", "exec", "--exec-id", "e5", "srv", "/bin/read")
		if r.Code != 0 || r.Stdout != "read one\nend\n" { // the end comes by close-io
			t.Errorf("exec with an input: %d, %q, %s", r.Code, r.Stdout, r.Stderr)
		}
		metrics(t, c, "srv")
		c.Must("task", "exec", "--detach", "--exec-id", "long", "srv", "/bin/sleep", "1000")
		vmm := fmt.Sprint(c.VMM("srv"))
		if out := c.Must("task", "ps", "srv"); strings.Count(out, vmm) != 2 || !strings.Contains(out, "long") || fmt.Sprint(c.PID("srv")) != vmm {
			t.Errorf("ps of VMM %s: %s", vmm, out)
		}
		if r := c.Run("task", "checkpoint", "srv"); r.Code == 0 || !strings.Contains(r.Stderr, "makes no checkpoints") {
			t.Errorf("checkpoint: %d, %s%s", r.Code, r.Stdout, r.Stderr)
		}
		c.Must("task", "pause", "srv")
		if s := c.Status("srv"); s != "PAUSED" {
			t.Errorf("paused, it is %s", s)
		}
		c.Must("task", "resume", "srv")
		if r := get(c, "srv", "/env/SECRET"); r != "planted-in-the-environment" {
			t.Errorf("after its pause it answers %q", r)
		}
		c.Must("task", "pause", "srv")
		end(c, "srv") // a paused one ends, too

		log := filepath.Join(c.Dir, "trap.log")
		c.Starts("trap", args("run", "-d", "--log-uri", "file://"+log, vm, shimtest.ProbeImage, "trap", "trap")...)
		for end := time.Now().Add(testenv.Limit(t, time.Minute)); ; time.Sleep(20 * time.Millisecond) {
			if b, _ := os.ReadFile(log); strings.Contains(string(b), "ready") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("nothing has come into its log\n%s", c.Log())
			}
		}
		c.Must("task", "kill", "--signal", "SIGUSR1", "trap")
		if code := c.Delete("trap"); code != "10" {
			t.Errorf("after a signal that it handles it has ended with %q, want 10", code)
		}
		if b, _ := os.ReadFile(log); string(b) != "ready\ngot user defined signal 1\n" {
			t.Errorf("its log is %q", b)
		}
	})
}

// metrics are those of the VMM: it has memory, and has used processor time.
func metrics(t *testing.T, c *shimtest.Containerd, id string) {
	t.Helper()
	var v struct {
		CPU struct {
			Usage     struct{ Total uint64 } // of cgroup v1
			UsageUsec uint64                 `json:"usage_usec"` // of v2
		}
	}
	text := c.Must("task", "metrics", "--format", "json", id)
	if err := json.Unmarshal([]byte(text), &v); err != nil || v.CPU.Usage.Total+v.CPU.UsageUsec == 0 {
		t.Errorf("metrics: %v: %s", err, text)
	}
	if used := usage(t, c, id); used < 8<<20 || used > 1<<30 {
		t.Errorf("metrics: %d bytes of memory", used)
	}
}

// get asks a container's server at 127.0.0.1 in its namespace, once it listens.
func get(c *shimtest.Containerd, id, path string) string {
	return eventually(c, func() shimtest.Result { return c.Inside(id, "get", "http://127.0.0.1:8080"+path) })
}

// eventually asks a server that is just starting.
func eventually(c *shimtest.Containerd, ask func() shimtest.Result) string {
	for end := time.Now().Add(c.Limit(30 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		r := ask()
		if !strings.Contains(r.Stderr, "connection refused") || time.Now().After(end) {
			if r.Code == 0 {
				return strings.TrimSpace(r.Stdout)
			}
			return r.Stdout + r.Stderr
		}
	}
}

// With a terminal: it is one, has a size, and passes keys on.
func TestTerminal(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		cmd := c.Ctr(args("run", "--rm", "-t", vm, shimtest.ProbeImage, "tty", "size")...)
		term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer term.Close()
		var mu sync.Mutex
		var out bytes.Buffer
		go func() {
			b := make([]byte, 4096)
			for {
				n, err := term.Read(b)
				mu.Lock()
				out.Write(b[:n])
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
		says := func(want string) {
			t.Helper()
			for end := time.Now().Add(testenv.Limit(t, time.Minute)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				mu.Lock()
				ok := strings.Contains(out.String(), want)
				mu.Unlock()
				if ok {
					return
				}
			}
			t.Fatalf("the terminal shows %q, want %q\n%s", out.String(), want, c.Log())
		}
		says("30 100")
		if err := pty.Setsize(term, &pty.Winsize{Rows: 20, Cols: 1}); err != nil {
			t.Fatal(err)
		}
		says("20 1")
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, out.String())
		}
		console, err := pty.Start(c.Ctr(args("run", "--rm", "-t", vm, shimtest.ProbeImage, "console", "write", "/dev/console", "by the console")...))
		if err != nil {
			t.Fatal(err)
		}
		defer console.Close()
		if b, _ := io.ReadAll(console); !strings.HasSuffix(string(b), "by the console") { // ctr may complain before
			t.Errorf("what is written to /dev/console comes as %q", b)
		}
	})
}

// What the first container of an image was told is in no snapshot that the next
// one gets, and what a clone draws is its own.
func TestClones(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		const secret = "planted-0f9a3e-in-the-environment"
		seen := map[string]bool{}
		for i := range 3 {
			id := fmt.Sprint("clone", i)
			r := c.Run(args("run", "--rm", vm, "--env", "SECRET="+secret, shimtest.ProbeImage, id, "random")...)
			if r.Code != 0 || len(r.Stdout) < 32 || seen[r.Stdout] {
				t.Errorf("%s draws %q after %v: %s", id, r.Stdout, seen, r.Stderr)
			}
			seen[r.Stdout] = true
		}
		if out := once(c, "named", "hostname").Stdout; !strings.HasPrefix(out, "named") && len(out) < 3 {
			t.Errorf("its host name is %q", out)
		}
		files := 0
		err := filepath.WalkDir(filepath.Join(shimtest.DataDir(t), "snapshots"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte("planted-in-the-environment")) {
				t.Errorf("%s holds a container's secret", path)
			}
			return err
		})
		if err != nil || files == 0 {
			t.Errorf("%d files of snapshots: %v", files, err)
		}
	})
}

// What a microVM cannot be is an error of the create call that says so, and
// leaves nothing.
func TestRefused(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		for i, tt := range []struct {
			flags []string
			says  string
		}{
			{[]string{"--net-host"}, "hostNetwork"},
			{[]string{"--privileged"}, "privileged"},
			{[]string{"--mount", "type=bind,src=/tmp,dst=/data,options=rbind:rw"}, "mounted for writing"},
			{[]string{"--annotation", "skep.dev/polcy=reap"}, "did you mean skep.dev/policy"},
			{[]string{"--annotation", "skep.dev/policy=reep"}, "did you mean reap"},
			{[]string{"--annotation", "skep.dev/memory=1Mi"}, "at least 128Mi"},
			{[]string{"--mount", "type=bind,src=/nonexistent,dst=/data,options=rbind:ro"}, "/nonexistent"},
			// By the guest, when all else is there.
			{[]string{"--mount", "type=bind,src=/etc/hostname,dst=/sys/x,options=rbind:ro"}, "/sys/x"},
		} {
			id := fmt.Sprint("bad", i)
			r := c.Run(args("run", "--rm", vm, tt.flags, shimtest.ProbeImage, id, "true")...)
			if r.Code == 0 || !strings.Contains(r.Stderr, tt.says) {
				t.Errorf("%v: exit code %d, want an error with %q: %s", tt.flags, r.Code, tt.says, r.Stderr)
			}
			if c.Run("container", "info", id).Code == 0 {
				c.Must("container", "delete", id)
			}
			if left := cgroupsLeft(id); len(left) > 0 {
				t.Errorf("%v: left: %v", tt.flags, left)
			}
		}
	})
}

// Files of the host's that are mounted to be read are there.
func TestFiles(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		dir := filepath.Join(c.Dir, "map")
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"a": "content of a", "sub/b": "content of b"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		mounted := []string{"--mount", "type=bind,src=" + dir + ",dst=/etc/map,options=rbind:ro", "--mount", "type=bind,src=" + filepath.Join(dir, "a") + ",dst=/one/file,options=rbind:ro"}
		r := c.Run(args("run", "--rm", vm, mounted, shimtest.ProbeImage, "files", "cat", "/etc/map/a", "/etc/map/sub/b", "/one/file")...)
		if r.Code != 0 || r.Stdout != "content of acontent of bcontent of a" {
			t.Errorf("%d %q %s", r.Code, r.Stdout, r.Stderr)
		}
		// What it leaves for the kubelet is there when it has ended, in the file that there was.
		message := filepath.Join(c.Dir, "message")
		if err := os.WriteFile(message, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for i, command := range [][]string{{"true"}, {"write", "/dev/termination-log", "why it has ended"}} {
			if r := c.Run(args("run", "--rm", vm, "--mount", "type=bind,src="+message+",dst=/dev/termination-log,options=rbind:rw", shimtest.ProbeImage, fmt.Sprint("ends", i), command)...); r.Code != 0 {
				t.Errorf("%v: %d %s", command, r.Code, r.Stderr)
			}
			if b, err := os.ReadFile(message); err != nil || string(b) != []string{"", "why it has ended"}[i] {
				t.Errorf("after %v its termination log is %q: %v", command, b, err)
			}
		}
		// What changes on the host comes after.
		hosts := filepath.Join(c.Dir, "hosts")
		if err := os.WriteFile(hosts, []byte("10.0.0.1 before and longer\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		mounted = append(mounted, "--mount", "type=bind,src="+hosts+",dst=/etc/hosts,options=rbind:rw")
		c.Starts("keeps", args("run", "-d", vm, mounted, shimtest.ProbeImage, "keeps", "pause")...)
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("new content"), 0o644); err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			out := c.Must("task", "exec", "--exec-id", fmt.Sprint("e", i), "keeps", "/bin/cat", "/etc/map/a", "/one/file")
			if out == "new contentnew content" {
				break
			}
			if i == 60 {
				t.Fatalf("its files are still %q", out)
			}
			time.Sleep(500 * time.Millisecond)
		}
		// What is removed there goes, and what it is called and whom it knows follows.
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "sub")), os.WriteFile(hosts, []byte("10.0.0.1 after\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			out := c.Must("task", "exec", "--exec-id", fmt.Sprint("f", i), "keeps", "/bin/cat", "/etc/hosts")
			gone := c.Run("task", "exec", "--exec-id", fmt.Sprint("g", i), "keeps", "/bin/cat", "/etc/map/sub/b").Code != 0
			if out == "10.0.0.1 after\n" && gone {
				break
			}
			if i == 60 {
				t.Fatalf("its /etc/hosts is still %q; what was removed has gone: %v", out, gone)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if out := c.Must("task", "exec", "--exec-id", "h", "keeps", "/bin/cat", "/etc/map/a"); out != "new content" {
			t.Errorf("what was not removed is %q", out)
		}
		end(c, "keeps")
	})
}

// Many, one after the other and at once. SKEP_CONTAINERS says how many make a row:
// make test-containerd takes a hundred, which is some minutes.
func TestMany(t *testing.T) {
	row := 15
	if s := os.Getenv("SKEP_CONTAINERS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("SKEP_CONTAINERS is %q: want a number", s)
		}
		row = n
	}
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		began := time.Now()
		for i := range row {
			if r := once(c, fmt.Sprint("row", i), "exit", "3"); r.Code != 3 {
				t.Fatalf("container %d of a row: exit code %d: %s\n%s", i, r.Code, r.Stderr, c.Log())
			}
		}
		t.Logf("%d in a row: %v each", row, time.Since(began)/time.Duration(row))
		began = time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if r := once(c, fmt.Sprint("crowd", i), "exit", "4"); r.Code != 4 {
					t.Errorf("container %d of a crowd: exit code %d: %s", i, r.Code, r.Stderr)
				}
			})
		}
		wg.Wait()
		t.Logf("10 at once: %v each", time.Since(began)/10)
	})
}

// Firecracker, where the settings choose it, is what a container runs on, or the
// create call says why it cannot be.
func TestFirecrackerChosen(t *testing.T) {
	eachVMWith(t, shimtest.Options{Env: []string{"SKEP_VMM=firecracker"}}, func(t *testing.T, c *shimtest.Containerd) {
		flags := args("run", "-d", vm, shimtest.ProbeImage, "chosen", "pause")
		if !testenv.Has("kvm") || !testenv.Has("firecracker") {
			if r := c.Run(flags...); r.Code == 0 || !strings.Contains(r.Stderr, "vmm is firecracker") {
				t.Errorf("without it: exit code %d, %s", r.Code, r.Stderr)
			}
			c.Must("container", "delete", "chosen")
			return
		}
		c.Starts("chosen", flags...)
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.PID("chosen"))); err != nil || filepath.Base(exe) != "firecracker" {
			t.Errorf("its VMM is %s, %v", exe, err)
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID("chosen")))
		if strings.Contains(string(b), "\nUid:\t0\t") {
			t.Errorf("its VMM is root's:\n%s", b)
		}
		end(c, "chosen")
	})
}
