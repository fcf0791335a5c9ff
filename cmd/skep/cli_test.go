package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// skep runs a command line against a daemon and returns what it wrote.
func skep(t *testing.T, socket string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := &cli{in: strings.NewReader("from stdin"), out: &out, err: &errs, environ: []string{"SKEP_SOCKET=" + socket, "HOME=/home/bee"}}
	code = c.run(t.Context(), args)
	return code, out.String(), errs.String()
}

// fakeDaemon serves the control API over a node without machines. Function
// echo answers with its request, and fails answers 500.
func fakeDaemon(t *testing.T) (string, *controltest.Node) {
	t.Helper()
	n := controltest.New("echo", "fails")
	n.Records = []api.Invocation{{
		ID: "r1", Function: "echo", Instance: "i1", Snapshot: "s1", Start: api.StartRestore, Status: 200,
		Phases: api.Phases{Spawn: 50 * time.Millisecond, Process: 130 * time.Millisecond, Total: 190 * time.Millisecond},
		Memory: &api.MemoryStats{Policy: "reap", Prefetched: 1898, Faults: 3, Wasted: -1, BytesRead: 7 << 20},
	}}
	for _, ev := range []api.Event{
		{Kind: api.EventInstance, Function: "echo", Instance: &api.Instance{ID: "i-1", State: api.InstanceStarting}},
		{Kind: api.EventPhase, Function: "echo", Phase: &api.StartPhase{Instance: "i-1", Name: "spawn", Took: 50 * time.Millisecond}},
		{Kind: api.EventInvocation, Function: "echo", Invocation: &n.Records[0]},
	} {
		n.Happened.Publish(ev)
	}
	invoke := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderInvocation, "r1")
		if r.PathValue("name") == "fails" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write([]byte(r.Method + " /" + r.PathValue("path") + " " + string(b)))
	})
	return serveControl(t, n, invoke), n
}

// serveControl serves the control API over a node, and returns its socket.
func serveControl(t *testing.T, n control.Node, invoke http.Handler) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := control.ListenUnix(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h := control.New(control.Options{
		Node: n, Invoke: invoke, Version: api.Version{Version: "v9", VMM: "fake"}, PageAddress: "127.0.0.1:7070",
		URL: func(f string) string { return "http://" + f + ".localhost:7080/" },
	}).Handler()
	go func() { done <- control.Serve(ctx, l, h, time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestExitCodes(t *testing.T) {
	socket, _ := fakeDaemon(t)
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, c := range []struct {
		name, socket string
		args         []string
		code         int
		says         string
	}{
		{"done", socket, []string{"ls"}, exitOK, ""},
		{"help", socket, []string{"-h"}, exitOK, ""},
		{"no verb", socket, nil, exitOK, ""},
		{"unknown verb", socket, []string{"depoly"}, exitUsage, "did you mean deploy"},
		{"unknown sub-verb", socket, []string{"snapshot", "crate"}, exitUsage, "create"},
		{"unknown flag", socket, []string{"ls", "--frobnicate"}, exitUsage, "frobnicate"},
		{"missing argument", socket, []string{"inspect"}, exitUsage, "usage: skep inspect NAME"},
		{"too many", socket, []string{"ls", "a"}, exitUsage, `"a"`},
		{"bad start", socket, []string{"invoke", "echo", "--start", "hot"}, exitUsage, "boot, restore or warm"},
		{"bad setting", socket, []string{"config", "--slots", "x"}, exitUsage, "slots"},
		{"bad file", socket, []string{"ls", "--config", "/nonexistent"}, exitUsage, "/nonexistent"},
		{"bad function", socket, []string{"deploy", "x", "--name", "A_B"}, exitUsage, "A_B"},
		{"bad env", socket, []string{"deploy", "x", "--env", "A"}, exitUsage, "no such variable is set here"},
		{"no image", socket, []string{"deploy"}, exitUsage, "no image"},
		{"no function", socket, []string{"inspect", "nosuch"}, exitNotFound, "`skep ls`"},
		{"mistyped function", socket, []string{"inspect", "ehco"}, exitNotFound, "did you mean echo?"},
		{"mistyped in a call", socket, []string{"invoke", "faisl"}, exitNotFound, "did you mean fails?"},
		{"mistyped in logs", socket, []string{"logs", "ecco"}, exitNotFound, "did you mean echo?"},
		{"mistyped built-in function", socket, []string{"deploy", "functions/helo"}, exitUsage, "did you mean hello?"},
		{"no snapshot to inspect", socket, []string{"snapshot", "inspect", "nosuch"}, exitNotFound, "`skep snapshot ls`"},
		{"bad picture", socket, []string{"snapshot", "inspect", "x", "--map", "x.jpg"}, exitUsage, ".svg or .png"},
		{"no snapshot", socket, []string{"snapshot", "rm", "nosuch"}, exitNotFound, "nosuch"},
		{"one of two", socket, []string{"rm", "nosuch", "nosuch2"}, exitNotFound, "nosuch2"},
		{"damaged", socket, []string{"snapshot", "verify", "bad"}, exitError, "digest differs"},
		{"bad time", socket, []string{"logs", "echo", "--since", "yesterday"}, exitUsage, "15m"},
		{"bad record time", socket, []string{"records", "--until", "-5m"}, exitUsage, "15m"},
		{"nothing to compare with", socket, []string{"bench", "herd", "--max", "1"}, exitUsage, "2 or more"},
		{"page for others", socket, []string{"dashboard", "--listen", "0.0.0.0:1"}, exitUsage, "loopback"},
		{"bad kind of event", socket, []string{"events", "--kind", "birth"}, exitUsage, "function_removed"},
		{"bad failure", socket, []string{"records", "--failure", "mine"}, exitUsage, "platform"},
		{"no limit", socket, []string{"records", "-n", "0"}, exitUsage, "1 or more"},
		{"no daemon", none, []string{"ls"}, exitUnreachable, "`skep up`"},
		{"function failed", socket, []string{"invoke", "fails"}, exitFunction, "answered 500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := skep(t, c.socket, c.args...)
			if code != c.code || !strings.Contains(stderr, c.says) {
				t.Errorf("skep %v: exit code %d, want %d: %s", c.args, code, c.code, stderr)
			}
		})
	}
}

// TestMeantBuiltin: who deploys hello is told of functions/hello, where there is
// no such image.
func TestMeantBuiltin(t *testing.T) {
	socket, n := fakeDaemon(t)
	for image, want := range map[string]bool{"hello": true, "hello:latest": true, "localhost:5000/hello": false, "shop": false} {
		n.DeployErr = &api.Error{Status: http.StatusNotFound, Message: "there is no such image"}
		if code, _, stderr := skep(t, socket, "deploy", image); code != exitNotFound || strings.Contains(stderr, "functions/hello") != want {
			t.Errorf("%s: exit code %d: %s", image, code, stderr)
		}
	}
	n.DeployErr = &api.Error{Status: http.StatusUnprocessableEntity, Message: "it does not start"}
	if _, _, stderr := skep(t, socket, "deploy", "hello"); strings.Contains(stderr, "functions/hello") {
		t.Errorf("of an image that there is: %s", stderr)
	}
}

func TestErrorsAsJSON(t *testing.T) {
	code, _, stderr := skep(t, "/nonexistent.sock", "ls", "--json")
	var e api.Error
	if err := json.Unmarshal([]byte(stderr), &e); err != nil || code != exitUnreachable || !strings.Contains(e.Hint, "skep up") {
		t.Fatalf("%d %q: %v", code, stderr, err)
	}
}

func TestVerbs(t *testing.T) {
	socket, n := fakeDaemon(t)
	for _, c := range []struct {
		name string
		args []string
		out  []string // in stdout
		err  []string // in stderr
	}{
		{"ls", []string{"ls"}, []string{"NAME", "echo", "256 MiB", "http://echo.localhost:7080/"}, nil},
		{"ls instances", []string{"ls", "-i"}, []string{"i1", "idle"}, nil},
		{"inspect", []string{"inspect", "echo"}, []string{"kept", "port 8080 accepts", "r1", "190"}, nil},
		{"invoke", []string{"invoke", "echo", "--path", "/a/b"}, []string{"GET /a/b "}, nil},
		{"invoke data", []string{"invoke", "echo", "-d", "text"}, []string{"POST / text"}, nil},
		{"invoke stdin", []string{"invoke", "echo", "-d", "-"}, []string{"POST / from stdin"}, nil},
		{"invoke verbose", []string{"invoke", "echo", "-v"}, []string{"GET / "}, []string{"restore start", "spawn", "50.0", "1898", "7.0 MiB", "not known"}},
		{"invoke many", []string{"invoke", "echo", "-n", "5", "-c", "2"}, []string{"restore reap", "5"}, nil},
		{"logs", []string{"logs", "echo", "--tail", "1"}, []string{"line 2\n"}, nil},
		{"logs since", []string{"logs", "echo", "--since", "15m", "--invocation", "r1"}, []string{"line 2\n"}, nil},
		{"dashboard link", []string{"dashboard", "--no-open"}, []string{"http://127.0.0.1:7070/#ticket="}, nil},
		{"events", []string{"events", "echo", "--after", "0", "-n", "3"}, []string{"i-1 starting", "i-1 spawn took 50.0 ms", "r1 restore start, status 200, 190 ms"}, nil},
		{"records", []string{"records", "echo", "--since", "1h", "--status", "2xx", "--slower-than", "1ms"}, []string{"r1", "echo", "190"}, nil},
		{"snapshot create", []string{"snapshot", "create", "echo"}, []string{"s1\n"}, nil},
		{"snapshot ls", []string{"snapshot", "ls"}, []string{"s1", "yes"}, nil},
		{"snapshot inspect", []string{"snapshot", "inspect", "s1"}, []string{"s1", "stream", "5 (0.0% of the guest)", "2.50, at most 4", "3 reads, 2 writes", "9.00 ms after resume", "12.0 KiB", "refused: learned: not usable"}, nil},
		{"snapshot inspect newest", []string{"snapshot", "inspect", "echo", "--json"}, []string{`"id": "s1"`, `"guest_memory": {`, `"contiguity_pages": 2.5`}, nil},
		{"snapshot verify", []string{"snapshot", "verify", "s1"}, []string{"s1 is whole"}, nil},
		{"image ls", []string{"image", "ls"}, []string{"aaaa", "1.0 MiB", "echo", "bbbb"}, nil},
		{"image prune", []string{"image", "prune"}, []string{"removed bbbb, 3.0 MiB\n"}, []string{"1 images removed"}},
		{"version", []string{"version"}, []string{"daemon v9"}, nil},
		{"config", []string{"config", "--slots", "9"}, []string{"flag --slots", "environment SKEP_SOCKET", "/home/bee/.cache/skep/kernels"}, nil},
		{"deploy", []string{"deploy", "localhost:5000/team/my_app:v3", "--memory-mib", "128", "-e", "A=b", "--keep-alive", "2s", "--", "--fast"}, []string{"deployed my-app\n"}, nil},
		{"complete function", []string{"__complete", "inspect", "e"}, []string{"echo\n"}, nil},
		{"complete snapshot", []string{"__complete", "snapshot", "rm", ""}, []string{"s1\n"}, nil},
		{"rm", []string{"rm", "fails"}, []string{"removed fails\n"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := skep(t, socket, c.args...)
			if code != exitOK {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			for _, w := range c.out {
				if !strings.Contains(stdout, w) {
					t.Errorf("stdout has no %q:\n%s", w, stdout)
				}
			}
			for _, w := range c.err {
				if !strings.Contains(stderr, w) {
					t.Errorf("stderr has no %q:\n%s", w, stderr)
				}
			}
		})
	}
	f, ok := n.Function("my-app")
	if !ok || f.MemoryMiB != 128 || f.Env["A"] != "b" || f.KeepAlive.D() != 2*time.Second || len(f.Args) != 1 || f.Args[0] != "--fast" {
		t.Errorf("deployed %+v", f)
	}
}

func TestJSONOutput(t *testing.T) {
	socket, _ := fakeDaemon(t)
	for _, args := range [][]string{
		{"ls"}, {"ls", "-i"}, {"inspect", "echo"}, {"invoke", "echo"}, {"version"}, {"config"},
		{"snapshot", "ls"}, {"snapshot", "create", "echo"}, {"deploy", "x"},
	} {
		code, stdout, stderr := skep(t, socket, append(args, "--json")...)
		if code != exitOK || !json.Valid([]byte(stdout)) {
			t.Errorf("skep %v: %d %s%s", args, code, stdout, stderr)
		}
	}
}

func TestSnapshotMap(t *testing.T) {
	socket, n := fakeDaemon(t)
	n.SnapshotList = []api.Snapshot{{ID: "newer", Function: "echo", Created: time.Unix(3, 0)}, {ID: "usable", Function: "echo", Created: time.Unix(2, 0), Usable: true}, {ID: "older", Function: "echo", Created: time.Unix(1, 0), Usable: true}}
	for name, begins := range map[string]string{"map.svg": "<svg ", "map.PNG": "\x89PNG"} {
		file := filepath.Join(t.TempDir(), name)
		code, stdout, stderr := skep(t, socket, "snapshot", "inspect", "echo", "--map", file, "--json")
		if code != exitOK || strings.Contains(stdout, `"map"`) || !strings.Contains(stdout, `"guest_memory"`) {
			t.Errorf("%s: %d %s%s", name, code, stdout, stderr)
		}
		b, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(b), begins) {
			t.Errorf("%s: %.20q, %v", name, b, err)
		}
		if name == "map.svg" && !strings.Contains(string(b), "snapshot usable,") {
			t.Errorf("not of the newest usable snapshot: %.2000s", b)
		}
	}
}

func TestFunctionFile(t *testing.T) {
	socket, n := fakeDaemon(t)
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "function.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := write(`
name = "resize"
image = "localhost:5000/resize"
memory_mib = 512
keep_alive = "5m"
args = ["-v"]
[env]
LEVEL = "2"
[snapshot]
after_invocations = 10
`)
	if code, _, stderr := skep(t, socket, "deploy", "-f", path, "--memory-mib", "1024", "-e", "MORE=1"); code != exitOK {
		t.Fatalf("%d: %s", code, stderr)
	}
	f, _ := n.Function("resize")
	if f.MemoryMiB != 1024 || f.KeepAlive.D() != 5*time.Minute || f.Env["LEVEL"] != "2" || f.Env["MORE"] != "1" || f.Snapshot.AfterInvocations != 10 {
		t.Errorf("deployed %+v", f)
	}
	for text, says := range map[string]string{
		"memroy_mib = 1":                   "memroy_mib",
		"name = ":                          "line 1",
		"memory_mib = \"1\"":               "memory_mib",
		"image_digest = \"sha256:abcd\"":   "image_digest",
		"[snapshot]\nafter_invocation = 1": "after_invocation",
	} {
		if code, _, stderr := skep(t, socket, "deploy", "-f", write(text)); code != exitUsage || !strings.Contains(stderr, says) {
			t.Errorf("%q: %d %s", text, code, stderr)
		}
	}
}

// A rehearsal is given by flags, to a new function and to one that is there, and by a file.
func TestRehearsalFlags(t *testing.T) {
	socket, n := fakeDaemon(t)
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, []byte("a picture"), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(want api.Rehearsal, args ...string) {
		t.Helper()
		if code, _, stderr := skep(t, socket, args...); code != exitOK {
			t.Fatalf("skep %q: %d %s", args, code, stderr)
		}
		if f, _ := n.Function("echo"); !reflect.DeepEqual(f.Rehearsal, want) {
			t.Errorf("skep %q: %+v", args, f.Rehearsal)
		}
	}
	deploy := []string{"deploy", "localhost:5000/echo", "--name", "echo"}
	header := map[string]string{"X-Key": "a:b"}
	must(api.Rehearsal{Path: "/resize", Body: "a picture", Header: header}, append(deploy, "--rehearse", "/resize", "--rehearse-data", "@"+body, "--rehearse-header", "X-Key: a:b")...)
	must(api.Rehearsal{Path: "/other", Body: "a picture", Header: header}, append(deploy, "--rehearse", "/other")...)
	must(api.Rehearsal{Path: "/other", Body: "text", Method: "PUT", Header: header}, "set", "echo", "rehearsal.body=text", "rehearsal.method=PUT")
	must(api.Rehearsal{}, "set", "echo", "--unset", "rehearsal")
	for says, args := range map[string][]string{
		"NAME: VALUE":   append(deploy, "--rehearse", "/", "--rehearse-header", "X"),
		"no path":       append(deploy, "--rehearse-data", "x"),
		"no such file":  append(deploy, "--rehearse", "/", "--rehearse-data", "@"+body+"x"),
		"starts with /": append(deploy, "--rehearse", "resize"),
	} {
		if code, _, stderr := skep(t, socket, args...); code == exitOK || !strings.Contains(stderr, says) {
			t.Errorf("skep %q: %d %s", args, code, stderr)
		}
	}
	if f, _ := n.Function("echo"); !f.Rehearsal.IsZero() {
		t.Errorf("after what was refused: %+v", f.Rehearsal)
	}
}

// Every verb explains itself, and the root's help is what was reviewed.
// A function that comes with skep has its own settings where none are given.
func TestBuiltinSettings(t *testing.T) {
	var d deployFlags
	f, err := d.base([]string{"functions/lr_training"})
	if err != nil || f.Image != "functions/lr_training" || f.Egress != api.EgressHost || f.ReadyTimeout.D() < time.Minute {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := d.base([]string{"localhost:5000/x"}); err != nil || f.Egress != "" {
		t.Errorf("another's: %+v, %v", f, err)
	}
	if _, err := d.base([]string{"functions/absent"}); err == nil || !strings.Contains(err.Error(), "pyaes") {
		t.Errorf("error %v: want one that names those that there are", err)
	}
}

func TestHelp(t *testing.T) {
	c := &cli{flags: map[string]string{}}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || cmd.HasParent() && cmd.Example == "" {
			t.Errorf("%s: wants a short line without full stop, and an example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(c.root())
	_, got, _ := skep(t, "", "-h")
	golden := filepath.Join("testdata", "help.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the help has changed; `go test ./cmd/skep -run TestHelp -update` takes this:\n%s", got)
	}
}

func TestNames(t *testing.T) {
	for image, want := range map[string]string{
		"localhost:5000/hello:latest":    "hello",
		"functions/hello-python":         "hello-python",
		"docker-archive:/tmp/My App.tar": "my-app",
		"oci:/srv/img:v1":                "img",
		"r.example/x/y@sha256:00":        "y",
		"dir:/srv/fn_1":                  "fn-1",
		"oci-archive:a.tar.gz":           "a",
	} {
		if got := nameOf(image); got != want {
			t.Errorf("%s: %q, want %q", image, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	d := []time.Duration{1, 2, 3, 4, 5}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 1: 5, 0.25: 2} {
		if got := quantile(d, q); got != want {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("no samples have a median")
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2J\n\tb\r\u009bc"); got != "a[2J\n\tbc" {
		t.Errorf("got %q", got)
	}
}
