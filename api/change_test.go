package api

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChangeKeepsTheRest(t *testing.T) {
	f := Function{Name: "shop", Image: "shop:v1", MemoryMiB: 256, Env: map[string]string{"DB": "hunter2", "LEVEL": "1"},
		Timeout: Duration(time.Minute), Concurrency: 4, Revision: 3}.WithDefaults()
	got, names, err := f.Change([]byte(`{"timeout":"5s","memory_mib":512,"concurrency":null,"env":{"LEVEL":null,"NEW":"x"},"snapshot":{"after_invocations":9}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got.Timeout.D() != 5*time.Second || got.MemoryMiB != 512 || got.DiskMiB != 256 || got.Concurrency != 1 || got.Snapshot.AfterInvocations != 9 {
		t.Errorf("changed to %+v", got)
	}
	if !maps.Equal(got.Env, map[string]string{"DB": "hunter2", "NEW": "x"}) || got.Image != "shop:v1" || got.Name != "shop" {
		t.Errorf("did not keep the rest: %+v", got)
	}
	if want := []string{"concurrency", "env.LEVEL", "env.NEW", "memory_mib", "snapshot.after_invocations", "timeout"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	if len(f.Env) != 2 || f.Env["LEVEL"] != "1" {
		t.Errorf("the function it was made from has changed: %+v", f.Env)
	}
}

// What is refused says which setting, and never its value.
func TestChangeRefuses(t *testing.T) {
	f := Function{Name: "shop", Image: "shop:v1"}.WithDefaults()
	for patch, says := range map[string]string{
		`{"memroy_mib":1}`:                       "memroy_mib",
		`{"revision":9}`:                         "revision cannot be set",
		`{"name":"other"}`:                       "name cannot be set",
		`{}`:                                     "nothing to change",
		`[]`:                                     "JSON object",
		`null`:                                   "JSON object",
		`{"env":{"PIN":4711}}`:                   "env",
		`{"memory_mib":47110000000000000000000}`: "memory_mib",
		`{"timeout":5}`:                          "timeout",
	} {
		_, _, err := f.Change([]byte(patch))
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: %v, want an error with %q", patch, err, says)
		}
	}
	hidden := Function{Name: "shop", Image: "x", Env: map[string]string{"A": "b"}}.Hide().WithDefaults()
	if err := hidden.Validate(); err == nil || !strings.Contains(err.Error(), `"A"`) {
		t.Errorf("a hidden value was taken: %v", err)
	}
}
