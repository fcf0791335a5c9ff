// Package python has the tests of the Python client that need the daemon's own code: that
// it is what the API's document says, and that it and the control API understand each
// other. Those against a real daemon are in test/.
package python

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestMade wants what is made of the API's document to be as it would be made now.
func TestMade(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err == nil {
		err = exec.Command(python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))").Run()
	}
	testenv.NeedThat(t, "python3", err, "apt-get install python3, of 3.11 or later")
	testenv.RunPython(t, python, ".", nil, "generate.py", "--check")
}

// TestClient has pytest look at the client, its calls of the control API among them.
func TestClient(t *testing.T) {
	python := testenv.Python(t)
	n := controltest.New("hello", "other", "third")
	n.SnapshotList = []api.Snapshot{{ID: "s1", Function: "hello", Usable: true}}
	n.Records = []api.Invocation{{ID: "r1", Function: "hello", Start: api.StartRestore, Time: time.Now(), Status: 200,
		Phases: api.Phases{Spawn: time.Millisecond, Total: 2 * time.Millisecond}, Memory: &api.MemoryStats{Policy: "reap", Faults: 3}}}
	n.Happened.Publish(api.Event{Kind: api.EventPhase, Function: "hello", Phase: &api.StartPhase{Instance: "i", Name: "spawn", Took: time.Millisecond}})
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(strings.Repeat("t", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderInvocation, "r1")
		w.Header().Set(api.HeaderStart, r.Header.Get(api.HeaderStart))
		fmt.Fprintf(w, "%s %s?%s", r.Method, r.PathValue("path"), r.URL.RawQuery)
	})
	server := control.New(control.Options{Node: n, Invoke: echo, Sessions: control.NewSessions(), Results: controltest.Results(t),
		Version: api.Version{Version: "v1", Go: "go", Policies: []string{"mmap", "reap"}, Gateway: "127.0.0.1:7080"}}).Handler()
	guarded, err := control.RequireToken(strings.Repeat("t", 32), control.NewSessions(), server)
	if err != nil {
		t.Fatal(err)
	}
	socket, address := filepath.Join(dir, "skep.sock"), testenv.FreeAddress(t)
	serve(t, "unix", socket, server)
	serve(t, "tcp", address, guarded)
	env := []string{"SKEP_TEST_CONTROL=" + socket, "SKEP_TEST_CONTROL_ADDRESS=" + address, "SKEP_TEST_CONTROL_TOKEN=" + token}
	t.Log(testenv.RunPython(t, python, ".", env, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--deselect", "tests/test_daemon.py"))
}

func serve(t *testing.T, kind, address string, h http.Handler) {
	l, err := net.Listen(kind, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, l, h, time.Second) }()
	t.Cleanup(func() { cancel(); <-done })
}

// TestTypes has mypy check the client and its tests, as strictly as it can.
func TestTypes(t *testing.T) {
	testenv.RunPython(t, testenv.Python(t), ".", nil, "-m", "mypy", "--cache-dir", t.TempDir())
}
