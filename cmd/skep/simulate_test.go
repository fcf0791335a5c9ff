package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/scale/sim"
)

// A trace is made, looked at, sampled and simulated under every policy, as JSON.
func TestSimulateVerb(t *testing.T) {
	dir := t.TempDir()
	costs := filepath.Join(dir, "costs.json")
	if err := os.WriteFile(costs, []byte(`{"source":"a test","starts":{"boot":[4,5],"reap":[0.1,0.3]},"warm":[0.001]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	made, small := filepath.Join(dir, "made"), filepath.Join(dir, "small")
	must := func(args ...string) string {
		t.Helper()
		code, out, errs := skep(t, "", args...)
		if code != 0 {
			t.Fatalf("skep %s: %d: %s", strings.Join(args, " "), code, errs)
		}
		return out
	}
	must("workload", "make", "--functions", "60", "--minutes", "20", made)
	must("workload", "sample", made, "-n", "5", small)
	if out := must("workload", "show", small); !strings.Contains(out, "5 functions") {
		t.Errorf("the sample: %s", out)
	}
	var answer struct{ Results []sim.Result }
	if err := json.Unmarshal([]byte(must("simulate", small, "--costs", costs, "--json")), &answer); err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(scale.Names()); len(answer.Results) != want {
		t.Errorf("%d results, want %d", len(answer.Results), want)
	}
	for _, r := range answer.Results {
		if r.Lost != 0 || r.Calls == 0 {
			t.Errorf("%+v", r)
		}
	}
	raw := filepath.Join(dir, "raw.jsonl")
	if out := must("simulate", "--functions", "20", "--minutes", "5", "--costs", costs, "--policy", "kpa", "--start", "boot", "--out", raw); !strings.Contains(out, "kpa") {
		t.Errorf("the table: %s", out)
	}
	if b, err := os.ReadFile(raw); err != nil || !strings.Contains(string(b), `"minutes_mib"`) {
		t.Errorf("raw results %q, %v", b, err)
	}
	for _, args := range [][]string{
		{"simulate", "--costs", costs, "--policy", "kpo"}, {"simulate", "--costs", costs, "--start", "lazy"}, {"simulate", "--costs", costs, "--placement", "here"},
	} {
		if code, _, errs := skep(t, "", args...); code != 2 {
			t.Errorf("%v: %d: %s", args, code, errs)
		}
	}
	if code, _, errs := skep(t, "", "simulate", "--data-dir", dir); code != 1 || !strings.Contains(errs, "skep bench start") {
		t.Errorf("without costs: %d: %s", code, errs)
	}
	if code, _, errs := skep(t, "", "workload", "make", made); code != 1 || !strings.Contains(errs, "not empty") {
		t.Errorf("over another trace: %d: %s", code, errs)
	}
}
