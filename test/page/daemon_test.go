package page

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

// daemon is a real one, which may be killed and come back.
type daemon struct {
	t       *testing.T
	dir     string
	address string // of the page
	client  *api.Client
	cmd     *exec.Cmd
	log     *testenv.Output
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	testenv.Need(t, "root", "uffd", "tap", "qemu", "kernel")
	d := &daemon{t: t, dir: t.TempDir(), address: testenv.FreeAddress(t), log: &testenv.Output{}}
	for name, pkg := range map[string]string{"skep": "cmd/skep", "skep-agent": "cmd/skep-agent", "skep-hello": "functions/hello"} {
		build := exec.Command("go", "build", "-o", filepath.Join(d.dir, name), "./"+pkg)
		build.Dir = "../.." // the programs' own module, not this one
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	conf := fmt.Sprintf("data_dir = '%[1]s/data'\nrun_dir = '%[1]s/run'\nsocket = '%[1]s/skep.sock'\nkernel_dir = '%[2]s'\nvmm = 'qemu'\nlisten = '%[3]s'\ncontrol_listen = '%[4]s'\ncontrol_token_file = '%[1]s/token'\n",
		d.dir, testenv.KernelStore(t), testenv.FreeAddress(t), d.address)
	for name, text := range map[string]string{"config.toml": conf, "token": strings.Repeat("t", 32)} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.client = api.NewClient(api.ClientOptions{Socket: filepath.Join(d.dir, "skep.sock")})
	t.Cleanup(func() { d.end(syscall.SIGTERM) })
	d.up()
	return d
}

func (d *daemon) up() {
	d.t.Helper()
	d.cmd = exec.Command(filepath.Join(d.dir, "skep"), "--config", filepath.Join(d.dir, "config.toml"), "up")
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(testenv.Limit(d.t, time.Minute)); ; time.Sleep(50 * time.Millisecond) {
		_, err := d.client.Version(d.t.Context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("the daemon does not answer: %v\n%s", err, d.log.Tail(4000))
		}
	}
}

func (d *daemon) end(how os.Signal) {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(how)
	err := d.cmd.Wait()
	d.cmd = nil
	if how == syscall.SIGTERM && err != nil {
		d.t.Errorf("the daemon's end: %v\n%s", err, d.log.Tail(4000))
	}
}

// TestRealDaemon watches a cold start of a real microVM as it happens, and bears a daemon
// that is killed and comes back.
func TestRealDaemon(t *testing.T) {
	d := newDaemon(t)
	deploy := exec.Command(filepath.Join(d.dir, "skep"), "--config", filepath.Join(d.dir, "config.toml"),
		"deploy", "functions/hello", "--ready-timeout", testenv.Limit(t, time.Minute).String(), "--keep-alive", "3s")
	if out, err := deploy.CombinedOutput(); err != nil {
		t.Fatalf("deploying: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Limit(t, 10*time.Second))
	defer cancel()
	ticket, err := d.client.Ticket(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t)
	b.do(chromedp.Navigate("http://" + d.address + "/#ticket=" + ticket.Ticket))
	b.sees("document.getElementById('status').textContent === 'live'")
	b.view("#/functions/hello", "hello")

	table := func(name string) string {
		return "([...document.querySelectorAll('table')].find((t) => t.caption.textContent === '" + name + "')?.textContent ?? '')"
	}
	// A boot takes long enough to be seen at it, a restore less than a look: what the page
	// said on the way is kept.
	b.do(chromedp.Evaluate("window.said = ''; new MutationObserver(() => { window.said += "+table("Starts of instances")+" + '\\n' }).observe(document.getElementById('main'), {subtree: true, childList: true})", nil))
	for _, start := range []string{"boot", "restore"} {
		b.do(chromedp.Evaluate("document.querySelector('select[name=start]').value = '"+start+"'", nil))
		b.press("Invoke")
		b.sees("/%s200.*process [0-9.]+ ms/.test(%s)", start, table("Requests"))
		b.says("answered 200")
	}
	b.sees("/starting.*spawn [0-9.]+ ms/.test(window.said)") // before it was over
	b.sees("/spawn [0-9.]+ ms, .*clone [0-9.]+ ms/.test(%s)", table("Starts of instances"))
	b.sees("/starting for [0-9.]+ s.*for /.test(%s)", table("Instances over time"))
	b.shoot("real-start")
	b.sees("/then it ended/.test(%s)", table("Instances over time")) // after its keep-alive
	b.shoot("real-timeline")

	d.end(syscall.SIGKILL)
	b.sees("document.getElementById('status').textContent.includes('no daemon answers')")
	d.up()
	// Its sessions have ended with it: a new ticket lets the tab in again.
	b.says("The session has ended.")
	b.fill("token", strings.Repeat("t", 32))
	b.press("Enter")
	b.sees("document.getElementById('status').textContent === 'live'")
	b.view("#/functions/hello", "hello")
	b.press("Invoke")
	b.says("answered 200")
	b.sees("/200.*process [0-9.]+ ms/.test(%s)", table("Requests"))
}
