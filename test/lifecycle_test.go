package test

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestStartsOfEveryKind deploys a function and sees it boot, answer warm, and
// come back from its snapshot under every memory policy.
func TestStartsOfEveryKind(t *testing.T) {
	d := start(t)
	d.hello("hello")
	for _, want := range []api.StartKind{api.StartBoot, api.StartRestore} {
		a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/?name=bee", Start: want})
		if a.err != nil || a.status != 200 || !strings.Contains(a.body, "bee") || a.header.Get(api.HeaderStart) != string(want) {
			t.Fatalf("start %s: %+v", want, a)
		}
	}
	for _, policy := range []string{"mmap", "resident"} {
		a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/?name=bee", Policy: policy})
		if a.err != nil || a.status != 200 || !strings.Contains(a.body, "bee") || a.header.Get(api.HeaderStart) != "restore" {
			t.Fatalf("policy %s: %+v", policy, a)
		}
	}
	first := d.mustGet("hello", "/")
	if got := first.header.Get(api.HeaderStart); got != "restore" {
		t.Errorf("the first request through the gateway: start %q, want restore", got)
	}
	if got := d.mustGet("hello", "/").header.Get(api.HeaderStart); got != "warm" {
		t.Errorf("the second: start %q, want warm", got)
	}
	recs := d.records("hello", 6)
	for _, r := range recs {
		sum := time.Duration(0)
		r.Phases.Each(func(name string, p time.Duration) {
			if name != "total" {
				sum += p
			}
		})
		if r.Phases.Total <= 0 || sum > r.Phases.Total+5*time.Millisecond {
			t.Errorf("record %s (%s): phases add up to %v, total is %v", r.ID, r.Start, sum, r.Phases.Total)
		}
	}
}

// records waits until a function has so many records.
func (d *daemon) records(function string, n int) (recs []api.Invocation) {
	d.t.Helper()
	eventually(d.t, fmt.Sprintf("%d records of %s", n, function), 10*time.Second, func() (err error) {
		recs, err = d.client.Invocations(d.ctx(5*time.Second), api.InvocationQuery{Function: function, Limit: 1000})
		if err == nil && len(recs) < n {
			err = fmt.Errorf("there are %d", len(recs))
		}
		return err
	})
	return recs
}

// TestScaleToZeroAndBack sends a hundred invocations over several cycles of
// scale to zero, then twenty at once to a cold function. Every body is checked.
func TestScaleToZeroAndBack(t *testing.T) {
	d := start(t)
	d.hello("hello", "--keep-alive", "1s", "--max-instances", "4")
	const cycles, each = 4, 20
	for c := range cycles {
		for i := range each {
			name := fmt.Sprintf("c%dn%d", c, i)
			if a := d.mustGet("hello", "/?name="+name); !strings.Contains(a.body, name) {
				t.Fatalf("body %q lacks %q", a.body, name)
			}
		}
		d.gone("hello")
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			name := fmt.Sprintf("burst%d", i)
			if a := d.get("hello", "/?name="+name); a.err != nil || a.status != 200 || !strings.Contains(a.body, name) {
				t.Errorf("burst %d: %+v", i, a)
			}
		})
	}
	wg.Wait()
	kinds := map[api.StartKind]int{}
	for _, r := range d.records("hello", cycles*each+20) {
		kinds[r.Start]++
	}
	if kinds[api.StartBoot] != 0 || kinds[api.StartRestore] < cycles+1 {
		t.Errorf("start kinds %v: want no boot and at least %d restores", kinds, cycles+1)
	}
}

// TestClonesDiffer restores the same snapshot several times and compares what
// must differ between clones and what must be right in each.
func TestClonesDiffer(t *testing.T) {
	d := start(t)
	d.hello("hello", "--clone-hook", "/clone")
	seen := map[string]string{}
	for i := range 4 {
		policy := []string{"mmap", "resident"}[i%2]
		ask := func(path string) string {
			a := d.invoke(api.InvokeRequest{Function: "hello", Path: path, Policy: policy})
			if a.err != nil || a.status != 200 {
				t.Fatalf("%s: %+v", path, a)
			}
			return strings.TrimSpace(a.body)
		}
		for _, path := range []string{"/urandom", "/uuid", "/hostname"} {
			v := ask(path)
			if other, dup := seen[v]; dup {
				t.Errorf("%s answers %q in two clones (%s)", path, v, other)
			}
			seen[v] = path
		}
		before := time.Now()
		nanos, err := strconv.ParseInt(ask("/time"), 10, 64)
		after := time.Now()
		if err != nil {
			t.Fatal(err)
		}
		guest := time.Unix(0, nanos)
		if guest.Before(before.Add(-100*time.Millisecond)) || guest.After(after.Add(100*time.Millisecond)) {
			t.Errorf("the clone's clock is off by %.0f ms", math.Max(float64(before.Sub(guest).Milliseconds()), float64(guest.Sub(after).Milliseconds())))
		}
		if got := ask("/clone"); !strings.HasPrefix(got, "1") {
			t.Errorf("the clone hook was called %s times, want 1", got)
		}
	}
}

// TestClonesShareNoFile writes a file in one clone and looks for it in others.
func TestClonesShareNoFile(t *testing.T) {
	d := start(t)
	d.hello("hello", "--keep-alive", "1s")
	d.mustGet("hello", "/write?path=/tmp/secret&data=honey")
	if a := d.mustGet("hello", "/read?path=/tmp/secret"); !strings.Contains(a.body, "honey") {
		t.Fatalf("the clone that wrote it reads %q", a.body)
	}
	if a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/read?path=/tmp/secret", Start: api.StartRestore}); a.status == 200 {
		t.Errorf("another clone reads it: %q", a.body)
	}
	d.gone("hello")
	if a := d.get("hello", "/read?path=/tmp/secret"); a.status == 200 {
		t.Errorf("a later clone reads it: %q", a.body)
	}
}
