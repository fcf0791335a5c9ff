package test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestEveryPolicy restores the same snapshot under every memory policy, several
// times, and logs what that took. It runs on whichever VMM the host has.
func TestEveryPolicy(t *testing.T) {
	const rounds = 3
	d := start(t)
	v, err := d.client.Version(d.ctx(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	d.hello("hello")
	// The first restore under the default policy records the working set.
	if a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/", Start: api.StartRestore}); a.err != nil || a.status != 200 {
		t.Fatalf("recording: %+v", a)
	}
	for n := range rounds {
		for _, policy := range v.Policies {
			name := fmt.Sprintf("bee-%s-%d", policy, n)
			a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/?name=" + name, Start: api.StartRestore, Policy: policy})
			if a.err != nil || a.status != 200 || !strings.Contains(a.body, name) {
				t.Fatalf("policy %s: %+v", policy, a)
			}
		}
	}
	t.Logf("on %s, in milliseconds", v.VMM)
	t.Logf("%-9s %8s %8s %8s %8s %8s %8s %8s %7s %10s", "policy", "total", "spawn", "load", "install", "resume", "clone", "process", "faults", "prefetched")
	for _, r := range d.records("hello", 1+rounds*len(v.Policies)) {
		if m := r.Memory; m != nil {
			p := r.Phases
			t.Logf("%-9s %8.1f %8.1f %8.1f %8.1f %8.1f %8.1f %8.1f %7d %10d", m.Policy, ms(p.Total), ms(p.Spawn), ms(p.Load), ms(p.Install),
				ms(p.Resume), ms(p.Clone), ms(p.Process), m.Faults, m.Prefetched)
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// TestTwentyClonesAtOnce: so many machines from one snapshot live at once, each
// in the middle of a request that ends when the test says, and each answers its
// own. They start one after the other, so that a slow host does not run into
// limits of time.
func TestTwentyClonesAtOnce(t *testing.T) {
	const clones = 20
	d := start(t)
	// A small guest, so that a small host's memory budget has room for all.
	d.hello("hello", "--memory-mib", "128", "--max-instances", fmt.Sprint(clones), "--concurrency", "1", "--keep-alive", "10m", "--timeout", "20m")
	answers := make(chan answer, clones)
	var bodies []*io.PipeWriter
	for n := range clones {
		body, w := io.Pipe()
		bodies = append(bodies, w)
		t.Cleanup(func() { w.Close() })
		go func() {
			req, err := http.NewRequestWithContext(d.ctx(10*time.Minute), "POST", "http://"+d.gateway+"/function/hello/echo", body)
			if err != nil {
				answers <- answer{err: err}
				return
			}
			answers <- read((&http.Client{}).Do(req))
		}()
		if _, err := fmt.Fprintf(w, "clone %d", n); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("%d clones", n+1), 2*time.Minute, func() error {
			is, err := d.client.Instances(d.ctx(5*time.Second), "hello")
			busy := 0
			for _, i := range is {
				if i.PID != 0 && i.State == api.InstanceBusy {
					busy++
				}
			}
			if err == nil && busy < n+1 {
				err = fmt.Errorf("there are %d", busy)
			}
			return err
		})
	}
	for _, w := range bodies {
		w.Close()
	}
	got := map[string]bool{}
	for range clones {
		a := <-answers
		if a.err != nil || a.status != 200 {
			t.Errorf("%+v", a)
		}
		got[a.body] = true
	}
	for n := range clones {
		if !got[fmt.Sprintf("clone %d", n)] {
			t.Errorf("clone %d gave no answer of its own: %v", n, got)
		}
	}
}

// TestVMMKilledInTheMiddle kills the VMM while it serves a request, which ends
// with an error and not with silence; the next request is answered.
func TestVMMKilledInTheMiddle(t *testing.T) {
	d := start(t)
	d.hello("hello", "--keep-alive", "1s")
	for _, policy := range []string{"mmap", "lazy", "stream"} {
		d.gone("hello")
		ended := make(chan answer, 1)
		go func() {
			ended <- d.invoke(api.InvokeRequest{Function: "hello", Path: "/sleep?ms=120000", Start: api.StartRestore, Policy: policy})
		}()
		pid := 0
		d.await("hello", "an instance serves", time.Minute, func() error {
			is, err := d.client.Instances(d.ctx(5*time.Second), "hello")
			if err != nil {
				return err
			}
			for _, i := range is {
				if i.PID != 0 {
					pid = i.PID
					return nil
				}
			}
			return fmt.Errorf("instances: %+v", is)
		})
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {
		case a := <-ended:
			if a.err == nil && a.status == 200 {
				t.Errorf("%s: a request to a dead machine: %+v", policy, a)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: the request hangs after its machine died", policy)
		}
		if a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/", Start: api.StartRestore, Policy: policy}); a.err != nil || a.status != 200 {
			t.Errorf("%s: afterwards: %+v", policy, a)
		}
	}
}

// TestFaultServerKilledInTheMiddle kills the daemon, in which guest memory is
// served, while a machine waits for its pages. Its successor ends the machine,
// and answers.
func TestFaultServerKilledInTheMiddle(t *testing.T) {
	d := start(t, "shells = 0") // what runs is the machine
	d.hello("hello", "--keep-alive", "5m")
	for _, policy := range []string{"lazy", "stream"} {
		ended := make(chan answer, 1)
		go func() {
			ended <- d.invoke(api.InvokeRequest{Function: "hello", Path: "/table", Start: api.StartRestore, Policy: policy})
		}()
		eventually(t, "a machine runs", time.Minute, func() error {
			if len(leftovers(d.data())) == 0 {
				return fmt.Errorf("nothing runs")
			}
			return nil
		})
		time.Sleep(100 * time.Millisecond) // a moment nobody chose
		d.kill()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Fatal("the request hangs after the daemon died")
		}
		d.up()
		for what := range leftovers(d.data()) {
			if !d.orphaned[what] {
				continue
			}
			if strings.HasPrefix(what, "process") || strings.HasPrefix(what, "mount") {
				t.Errorf("%s: still there under the next daemon: %s", policy, what)
			}
		}
		if a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/", Start: api.StartRestore, Policy: policy}); a.err != nil || a.status != 200 {
			t.Errorf("%s: afterwards: %+v", policy, a)
		}
	}
}
