package node

import (
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/vmm"
)

// Memory that a VMM uses beside its guest's counts, too.
func TestBudgetCountsTheVMMs(t *testing.T) {
	b := newBudget(10, 600)
	b.overheadMiB = 50
	for i, want := range []bool{true, true, false} {
		if got := b.take(250, nil); got != want {
			t.Errorf("instance %d of 250 MiB: %v, want %v", i, got, want)
		}
	}
	if b.fitsBeside(amount{1, 250}, 251) || !b.fitsBeside(amount{1, 250}, 250) {
		t.Error("the room beside one instance is not 250 MiB")
	}
	if err := b.fits(550); err != nil {
		t.Error(err)
	}
	if err := b.fits(551); err == nil || !strings.Contains(err.Error(), "its VMM needs 50") {
		t.Errorf("a guest that leaves no room for its VMM: %v", err)
	}
}

// A VMM is limited without being told to, by what it says that it needs.
func TestVMMsAreLimited(t *testing.T) {
	for name, test := range map[string]struct{ set, want vmm.Limits }{
		"by default": {vmm.Limits{}, vmm.Limits{MemoryMiB: 96, PIDs: 128, CPUs: 1}},
		"as set":     {vmm.Limits{MemoryMiB: 7, PIDs: 8, CPUs: 9}, vmm.Limits{MemoryMiB: 7, PIDs: 8, CPUs: 9}},
		"not":        {vmm.Limits{MemoryMiB: -1, PIDs: -1, CPUs: -1}, vmm.Limits{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.bootTime, w.restoreTime = 0, 0
			w.info.Overhead = vmm.Overhead{UsedMiB: 40, MostMiB: 96}
			n := w.open(t, func(c *Config) { c.Limits = test.set })
			if _, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Name = "f" }), nil); err != nil {
				t.Fatal(err)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.limits != test.want {
				t.Errorf("the machine has %+v, want %+v", w.limits, test.want)
			}
		})
	}
}
