package test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestProcessesStartedAhead: a VMM process waits after a deployment and after the
// daemon's start, and the next cold start takes it, with device state loaded, after which another waits; when it
// is killed instead, the next cold start does without; however the daemon ends, it is not left.
func TestProcessesStartedAhead(t *testing.T) {
	d := start(t, "shells = 1")
	d.hello("hello", "--keep-alive", "1s")
	coldStart := func(want int) int {
		t.Helper()
		a := d.mustGet("hello", "/?name=bee")
		if a.header.Get(api.HeaderStart) != "restore" || !strings.Contains(a.body, "bee") {
			t.Fatalf("%+v, want a restore", a)
		}
		is, err := d.client.Instances(d.ctx(5*time.Second), "hello")
		if err != nil || len(is) != 1 {
			t.Fatalf("instances %+v, %v", is, err)
		}
		if want != 0 && is[0].PID != want {
			t.Errorf("process %d was taken, %d was waiting", is[0].PID, want)
		}
		var rec api.Invocation
		eventually(t, "a record", 10*time.Second, func() error {
			rec, err = d.client.Invocation(d.ctx(5*time.Second), a.header.Get(api.HeaderInvocation))
			return err
		})
		if is[0].VMM == "qemu" && want != 0 && rec.Phases.Load != 0 {
			t.Errorf("device state was loaded when the request was there: %+v", rec.Phases)
		}
		return is[0].PID
	}
	next := d.waiting(0)
	pid := coldStart(next)
	next = d.waiting(pid)
	d.gone("hello")
	if left := machines(d.data()); len(left) != 1 || left[0] != next {
		t.Errorf("processes when the function sleeps: %v, want %d alone", left, next)
	}
	pid = coldStart(next)
	next = d.waiting(pid)
	d.gone("hello")
	if err := syscall.Kill(next, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pid = coldStart(0)
	old := d.waiting(pid)
	d.kill()
	d.up()
	next = d.waiting(0)
	if left := machines(d.data()); len(left) != 1 || next == old || next == pid {
		t.Errorf("processes after the daemon was killed and started again: %v, before %d and %d", left, old, pid)
	}
	pid = coldStart(next)
	d.waiting(pid)
}

// waiting returns the VMM process that is not in use.
func (d *daemon) waiting(used int) (pid int) {
	d.t.Helper()
	eventually(d.t, "a process waits", 30*time.Second, func() error {
		for _, p := range machines(d.data()) {
			if p != used {
				pid = p
				return nil
			}
		}
		return fmt.Errorf("there is only %d", used)
	})
	return pid
}

// machines are the VMM processes of the daemon on that data directory.
func machines(data string) (pids []int) {
	for what := range leftovers(data) {
		var pid int
		if n, _ := fmt.Sscanf(what, "process %d", &pid); n == 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}
