package experiment

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// starting is a node whose snapshot is on its way from one moment after another to another.
type starting struct {
	Host
	began    time.Time
	from, to time.Duration
}

func (n *starting) Close() error { return nil }

func (n *starting) Stats() api.StoreStats {
	if d := time.Since(n.began); d >= n.from && d < n.to {
		return api.StoreStats{Arriving: 1}
	}
	return api.StoreStats{}
}

func TestUntilWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		n := &starting{began: began, from: 30 * time.Millisecond, to: 200 * time.Millisecond}
		if got := untilWhole(ctx, n, began); got < n.to || got > n.to+2*time.Millisecond {
			t.Errorf("whole after %v", got)
		}
		if got := untilWhole(ctx, n, began); got != 0 || ctx.Err() == nil {
			t.Errorf("what was there was whole after %v", got)
		}
	})
}

// Every variant that is planned can be told apart, and no function is started before all are stored in order.
func TestRemotePoints(t *testing.T) {
	set := Settings{Functions: []string{"helloworld", "pyaes"}, Runs: 2}
	var stored []string
	for _, p := range remotePoints(set) {
		if p.Variant == remoteStored {
			stored = append(stored, p.Function)
			continue
		}
		if len(stored) != 2 {
			t.Fatalf("%s comes when %v are stored", p, stored)
		}
		at := place(Sample{Point: p})
		at, _, _ = strings.Cut(at, ", ")
		if !slices.Contains([]string{remoteLocal, "1 ms", "10 ms"}, at) || policyOf(Sample{Point: p}) == "" {
			t.Errorf("%s is from nowhere", p)
		}
		if p.N != 0 && (p.N != 16 || p.Function != "helloworld") {
			t.Errorf("%s: %d nodes", p, p.N)
		}
	}
}

// A start from the store is compared with the local one of its run.
func TestShowRemote(t *testing.T) {
	var all []Sample
	start := func(variant string, run int, took time.Duration, r *Remote) {
		all = append(all, Sample{Point: Point{Experiment: "remote", Function: "f", Variant: variant, Run: run}, Remote: r,
			Record: &api.Invocation{Phases: api.Phases{Total: took}, Memory: &api.MemoryStats{Prefetched: 900, Faults: 100}}})
	}
	for i, size := range []int64{64, 32, 16} {
		all = append(all, Sample{Point: Point{Experiment: "remote", Function: string(rune('a' + i)), Variant: remoteStored},
			Remote: &Remote{Guest: 256, Pushed: &api.PushedSnapshot{Content: 2 * size, New: size, Written: size}}})
	}
	for run := range 3 {
		start("reap, local", run, 100*time.Millisecond<<run, nil)
		start("reap, 10 ms", run, 160*time.Millisecond<<run, &Remote{Fetched: 5e6, Total: 2e7, Requests: 12, Waits: 3, Waited: 40 * time.Millisecond, Whole: 900 * time.Millisecond,
			Link: &LinkSpeed{Name: "10 ms", Link: remoteLinks[1].Link, Request: 13 * time.Millisecond, MBps: 110}})
	}
	all = append(all, Sample{Point: Point{Experiment: "remote", Function: "a", Variant: "stream, 10 ms"}, Remote: &Remote{},
		Record: &api.Invocation{Memory: &api.MemoryStats{Remote: &api.RemoteMemory{Total: 32}}}})
	sec := showRemote(all)
	rows := sec.Tables[0].Rows
	want := []string{"f", "reap", "10 ms", "1", "320 [160–640]", "1.6×", "900", "5", "20", "4.1", "12", "3", "40"}
	if len(rows) != 3 || !slices.Equal(rows[1], want) {
		t.Errorf("%q; want %q", rows, want)
	}
	said := strings.Join(sec.Findings, "\n")
	for _, want := range []string{"1.6× as long as a local start", "beyond the goal of 1.5×", "first function: 25%", "but its root disk, which is no guest memory, takes at most 12.5%", "later one at most 12.5%", "14.6% of all"} {
		if !strings.Contains(said, want) {
			t.Errorf("findings do not say %q:\n%s", want, said)
		}
	}
	last := sec.Tables[len(sec.Tables)-1]
	if last.Name != "remote-links" || len(last.Rows) != 1 || !slices.Equal(last.Rows[0], []string{"10 ms", "10ms", "1", "13", "110"}) {
		t.Errorf("%s: %q", last.Name, last.Rows)
	}
}
