package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/load"
)

// instances counts those of a function that are ready and do not end.
func (d *daemon) instances(function string) (n int) {
	d.t.Helper()
	all, err := d.client.Instances(d.ctx(10*time.Second), function)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, i := range all {
		if i.State == api.InstanceIdle || i.State == api.InstanceBusy {
			n++
		}
	}
	return n
}

// vmms counts the VMMs' processes of the daemon's machines, as the kernel knows them.
func (d *daemon) vmms() (n int) {
	names, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && bytes.Contains(append([]byte{0}, b...), []byte("\x00SKEP_NODE="+d.data()+"\x00")) {
			n++
		}
	}
	return n
}

// TestScalingPolicies has microVMs do what policies other than the default say: end soon
// after a request, or at once, be kept by a price, be there though nobody asks, and start
// again after one has died.
func TestScalingPolicies(t *testing.T) {
	d := start(t, "scaling = 'none'", "shells = 0") // of functions that say nothing; no process waits ahead, which would count
	d.hello("kept", "--scaling", "fixed:keep-alive=2s")
	becomes := func(want int, why string) {
		t.Helper()
		eventually(t, why, time.Minute, func() error {
			if n, vmms := d.instances("kept"), d.vmms(); n != want || vmms != want {
				return fmt.Errorf("%d instances are ready, there are %d VMMs: want %d", n, vmms, want)
			}
			return nil
		})
	}
	set := func(pairs ...string) {
		t.Helper()
		d.mustCLI(append([]string{"set", "kept"}, pairs...)...)
	}
	starts := func() string { return d.mustGet("kept", "/").header.Get(api.HeaderStart) }

	becomes(0, "what the deployment ran is over")
	if s := starts(); s != string(api.StartRestore) {
		t.Errorf("the first request was answered by a %s start", s)
	}
	becomes(0, "two seconds of keep-alive are over")

	// A price by which memory costs next to nothing keeps it, where the same idle time ended it
	// before; one by which it costs all ends it.
	set("scaling=break-even:price=1000000")
	starts()
	time.Sleep(6 * time.Second)
	if s := starts(); s != string(api.StartWarm) {
		t.Errorf("by a price that pays it was a %s start", s)
	}
	set("scaling=break-even:price=1")
	becomes(0, "the price does not pay")

	set("scaling=") // the daemon's: none
	starts()
	becomes(0, "nothing is kept")

	set("scaling=fixed:keep-alive=1s", "min_instances=2", "max_instances=3")
	becomes(2, "two are there though nobody asked")
	if s := starts(); s != string(api.StartWarm) {
		t.Errorf("with two there it was a %s start", s)
	}
	d.kill()
	d.up()
	becomes(2, "after a crash of the daemon two are there again")
	set("min_instances=0")
	becomes(0, "none has to be there any more")
}

// TestTargetUtilization has instances with room for four requests get two at most, as long as
// there may be another: the third has one started though nobody waits, and the next goes there.
func TestTargetUtilization(t *testing.T) {
	d := start(t, "shells = 0")
	d.hello("roomy", "--concurrency", "4", "--target-utilization", "0.5", "--max-instances", "2", "--timeout", "10m", "--keep-alive", "10m")
	first := d.mustGet("roomy", "/").header.Get(api.HeaderInstance)

	ctx, release := context.WithCancel(t.Context())
	var held sync.WaitGroup
	t.Cleanup(held.Wait)
	t.Cleanup(release)
	hold := func(n int) {
		for range n {
			held.Go(func() {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.gateway+"/function/roomy/sleep?ms=300000", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if resp, err := httpClient.Do(r); err == nil {
					resp.Body.Close()
					t.Errorf("a request that was to sleep for five minutes was answered before: %s", resp.Status)
				}
			})
		}
	}
	active := func() map[string]int {
		all, err := d.client.Instances(d.ctx(10*time.Second), "roomy")
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]int{}
		for _, i := range all {
			out[i.ID] = i.Active
		}
		return out
	}
	becomes := func(why string, ok func(map[string]int) bool) {
		t.Helper()
		d.await("roomy", why, testenv.Limit(t, time.Minute), func() error {
			if a := active(); !ok(a) {
				return fmt.Errorf("its instances have these requests: %v", a)
			}
			return nil
		})
	}
	hold(2)
	becomes("two requests share one instance", func(a map[string]int) bool { return len(a) == 1 && a[first] == 2 })
	hold(1)
	becomes("the third has another started", func(a map[string]int) bool { return len(a) == 2 && d.instances("roomy") == 2 })
	if got := d.mustGet("roomy", "/"); got.header.Get(api.HeaderInstance) == first {
		t.Error("the next request went to the instance that is beyond its target")
	}
}

// TestGreedyDualUnderPressure fills a node's memory with two functions, of which the one
// called last is called seldom. By its rank that one goes when a third needs room; what
// was used least lately would be the other.
func TestGreedyDualUnderPressure(t *testing.T) {
	d := start(t, "scaling = 'greedy-dual'", "memory_budget_mib = 1300", "shells = 0")
	for _, name := range []string{"often", "seldom", "third"} {
		d.hello(name, "--memory-mib", "512")
		d.mustGet(name, "/") // so that all have been restored once, and what a start costs is known of each
	}
	count := func() [3]int { return [3]int{d.instances("often"), d.instances("seldom"), d.instances("third")} }
	for range 20 {
		d.mustGet("often", "/")
	}
	d.mustGet("seldom", "/")
	eventually(t, "room for two of three", time.Minute, func() error {
		if n := count(); n != [3]int{1, 1, 0} {
			return fmt.Errorf("instances of often, seldom, third: %v", n)
		}
		return nil
	})
	d.mustGet("third", "/")
	eventually(t, "the third has the place of the one called seldom", time.Minute, func() error {
		if n := count(); n != [3]int{1, 0, 1} {
			return fmt.Errorf("instances of often, seldom, third: %v", n)
		}
		return nil
	})
	if s := d.mustGet("often", "/").header.Get(api.HeaderStart); s != string(api.StartWarm) {
		t.Errorf("the one called often was answered by a %s start", s)
	}
}

// TestLoadOutlivesTheDaemon kills the daemon while a loader calls a function under a policy:
// every call is over once, those that nobody could answer are counted with the reason, and
// the policy is in force again, with nothing left of the machines there were.
func TestLoadOutlivesTheDaemon(t *testing.T) {
	d := start(t, "shells = 0")
	d.hello("called", "--scaling", "break-even:price=100000", "--min-instances", "1", "--max-instances", "2")
	out := filepath.Join(d.dir, "results")
	cmd := d.command("load", "--source", "constant:rate=4", "--duration", "30s", "--function", "called", "--took", "5ms", "--timeout", "20s", "--out", out)
	cmd.Stderr = d.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	answered := func() (n int) {
		r, err := load.Read(out)
		if err != nil {
			return 0
		}
		return r.Done - r.Lost
	}
	eventually(t, "calls that are answered", 2*time.Minute, func() error {
		if answered() < 8 {
			return errors.New("too few")
		}
		return nil
	})
	d.kill()
	d.up()
	err := <-ended
	r, rerr := load.Read(out)
	if rerr != nil {
		t.Fatal(rerr)
	}
	if r.Done != 120 || r.Calls != 120 || (r.Lost > 0) != (err != nil) || r.Lost > 0 && len(r.Reasons) == 0 {
		t.Errorf("%d of %d calls are over, %d lost because of %v; the loader says %v", r.Done, r.Calls, r.Lost, r.Reasons, err)
	}
	samples := r.Samples()
	if last := samples[len(samples)-1]; last.Lost != "" {
		t.Errorf("the last call was lost, long after the daemon was there again: %s", last.Lost)
	}
	eventually(t, "the one that is to be there", time.Minute, func() error {
		if n, vmms := d.instances("called"), d.vmms(); n < 1 || n > 2 || vmms != n {
			return fmt.Errorf("%d instances are ready, there are %d VMMs", n, vmms)
		}
		return nil
	})
	t.Logf("%d answered, %d lost: %v", r.Done-r.Lost, r.Lost, r.Reasons)
}
