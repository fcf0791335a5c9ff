package test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/test/clients"
)

// place is this host, where functions have the gateway's address.
func (d *daemon) place(functions ...string) clients.Place {
	p := clients.Place{Dir: d.t.TempDir(), Hosts: map[string]string{}, Command: func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, args[0], args[1:]...)
	}}
	host, _, _ := net.SplitHostPort(d.gateway)
	for _, f := range functions {
		p.Hosts[f+".localhost"] = host
	}
	return p
}

// program deploys a function of one static program, which listens at a port.
func (d *daemon) program(name, path string, port int, args ...string) {
	d.t.Helper()
	root := filepath.Join(d.dir, "images-in", name)
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.MkdirAll(root, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "server"), b, 0o755)
	}
	config, _ := json.Marshal(map[string]any{"entrypoint": append([]string{"/server"}, args...)})
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "skep-image.json"), config, 0o644)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	d.mustCLI("deploy", "dir:"+root, "--name", name, "--port", strconv.Itoa(port), "--ready-timeout", d.ready().String())
}

// vSwarm's invoker calls two of its functions: through its relays, which run beside the
// gateway and find the functions there by their names.
func TestVSwarm(t *testing.T) {
	dir := clients.Built(t, "vswarm", clients.VSwarmEnv, "invoker", "relay", "aes-go", "auth-go")
	d := start(t)
	functions := []string{"aes-go", "auth-go"}
	p := d.place(functions...)
	_, gateway, _ := net.SplitHostPort(d.gateway)
	_, port, _ := net.SplitHostPort(testenv.FreeAddress(t)) // of the relays
	v := clients.Invocation{Invoker: filepath.Join(dir, "invoker"), PerSec: 2, Seconds: 20}
	v.Port, _ = strconv.Atoi(port)
	for i, f := range functions {
		d.program(f, filepath.Join(dir, f), 50051, "--addr=0.0.0.0:50051")
		at := "127.0.19." + strconv.Itoa(i+1)
		p.Start(t, filepath.Join(dir, "relay"), "--addr="+net.JoinHostPort(at, port), "--function-name="+f,
			"--function-endpoint-url="+f+".localhost", "--function-endpoint-port="+gateway)
		eventually(t, "the relay listens", time.Minute, func() error {
			conn, err := net.Dial("tcp", net.JoinHostPort(at, port))
			if err == nil {
				conn.Close()
			}
			return err
		})
		v.Hosts = append(v.Hosts, at)
	}
	done, err := p.Invoke(t.Context(), v)
	if err == nil {
		err = v.Whole(done)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", done)
	for _, f := range functions {
		if r, err := d.client.Invocations(d.ctx(10*time.Second), api.InvocationQuery{Function: f}); err != nil || len(r) == 0 {
			t.Errorf("%s was not called: %v", f, err)
		}
	}
}

// STeLLAR's client calls its function in bursts.
func TestStellar(t *testing.T) {
	dir := clients.Built(t, "stellar", clients.StellarEnv, "stellar", "producer-consumer")
	d := start(t)
	d.program("producer", filepath.Join(dir, "producer-consumer"), 50051)
	_, port, _ := net.SplitHostPort(d.gateway)
	e := clients.Experiment{Client: filepath.Join(dir, "stellar"), Endpoints: []string{"producer.localhost:" + port}, Bursts: 5, Size: 2}
	rows, err := d.place("producer").Stellar(d.ctx(3*time.Minute), e)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != e.Bursts*e.Size {
		t.Errorf("of %d calls %d were answered: %v", e.Bursts*e.Size, len(rows), rows)
	}
	t.Logf("%v", rows)
}

// invitro's loader registers the functions of its example as at Dirigent, and calls them:
// by HTTP/1.1, and by HTTP/2.
func TestInvitro(t *testing.T) {
	dir := clients.Built(t, "invitro", clients.InvitroEnv, "loader")
	for _, http2 := range []bool{false, true} {
		t.Run("HTTP"+map[bool]string{false: "1", true: "2"}[http2], func(t *testing.T) {
			testInvitro(t, clients.Trace{Loader: filepath.Join(dir, "loader"), Dir: filepath.Join(dir, "example"), Minutes: 2, HTTP2: http2})
		})
	}
}

func testInvitro(t *testing.T, trace clients.Trace) {
	d := start(t)
	at := testenv.FreeAddress(t)
	front := d.command("dirigent", "--listen", at, "--image", "functions/hello")
	front.Stderr = d.log
	if err := front.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(func() error {
		_ = front.Process.Signal(os.Interrupt)
		return front.Wait()
	})
	t.Cleanup(func() { _ = stop() })
	eventually(t, "registrations are taken", 2*time.Minute, func() error {
		conn, err := net.Dial("tcp", at)
		if err == nil {
			conn.Close()
		}
		return err
	})
	// In its first five minutes the first of the four functions is called five times in each.
	trace.Control = at
	done, err := d.place().Load(d.ctx(6*time.Minute), trace)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", done)
	if want := (clients.Loaded{Calls: 10, Ran: 10}); done != want {
		t.Errorf("%+v, want %+v", done, want)
	}
	functions, err := d.client.Functions(d.ctx(10 * time.Second))
	if err != nil || len(functions) != 4 {
		t.Errorf("%d functions, %v; want the four of the example", len(functions), err)
	}
	if err := stop(); err != nil {
		t.Errorf("the end of registrations: %v", err)
	}
	if functions, err := d.client.Functions(d.ctx(10 * time.Second)); err != nil || len(functions) != 0 {
		t.Errorf("%d functions are left, %v", len(functions), err)
	}
}
