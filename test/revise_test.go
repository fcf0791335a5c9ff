package test

import (
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestSetAndRollback changes a function on real machines: what is looked up at
// each request at once, what is in the guest by a new snapshot, and back from
// the one that was kept, after a daemon that was killed in the middle of a change.
func TestSetAndRollback(t *testing.T) {
	d := start(t)
	d.hello("hello", "--env", "GREETING=first")
	d.mustGet("hello", "/")
	before := len(d.snapshots("hello"))
	d.mustCLI("set", "hello", "timeout=50s", "keep_alive=2m")
	if a := d.mustGet("hello", "/"); a.header.Get(api.HeaderStart) != "warm" {
		t.Errorf("after a change of timeout: start %q, want the instance that was there", a.header.Get(api.HeaderStart))
	}
	if n := len(d.snapshots("hello")); n != before {
		t.Errorf("%d snapshots, were %d", n, before)
	}
	d.mustCLI("set", "hello", "env.GREETING=second")
	if f, err := d.client.FunctionEnv(d.ctx(5*time.Second), "hello"); err != nil || f.Env["GREETING"] != "second" || f.Timeout.D() != 50*time.Second {
		t.Errorf("set: %+v, %v", f.Function, err)
	}
	d.mustGet("hello", "/")

	changed := make(chan error, 1)
	go func() {
		_, err := d.client.Set(d.ctx(time.Minute), "hello", map[string]any{"env": map[string]string{"GREETING": "third"}}, nil)
		changed <- err
	}()
	select {
	case <-time.After(1500 * time.Millisecond): // any moment will do
	case err := <-changed:
		changed <- err
	}
	d.kill()
	err := <-changed
	d.up()
	f, ferr := d.client.FunctionEnv(d.ctx(5*time.Second), "hello")
	got := f.Env["GREETING"]
	if ferr != nil || got != "third" && (err == nil || got != "second") {
		t.Errorf("after the kill: %q, %v (the change: %v)", got, ferr, err)
	}
	d.mustGet("hello", "/")

	d.mustCLI("rollback", "hello", "1")
	if f, ferr = d.client.FunctionEnv(d.ctx(5*time.Second), "hello"); ferr != nil || f.Env["GREETING"] != "first" {
		t.Errorf("rolled back: %+v, %v", f.Function, ferr)
	}
	if a := d.mustGet("hello", "/"); a.header.Get(api.HeaderStart) != "restore" {
		t.Errorf("after the rollback: start %q, want a restore", a.header.Get(api.HeaderStart))
	}
	if out := d.mustCLI("revisions", "hello"); !strings.Contains(out, "rollback to 1") || !strings.Contains(out, "set env.GREETING") {
		t.Errorf("revisions:\n%s", out)
	}
}

func (d *daemon) snapshots(function string) []api.Snapshot {
	d.t.Helper()
	list, err := d.client.Snapshots(d.ctx(5*time.Second), function)
	if err != nil {
		d.t.Fatal(err)
	}
	return list
}
