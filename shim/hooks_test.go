package shim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Hooks run in their order, with the state, their arguments and their environment
// and nothing else of it, until one fails; those that come last run all the same.
func TestHooks(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	second := 1
	say := func(words string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"own-name", "-c", "echo $0 $A " + words + " >>" + out}, Env: []string{"A=b"}}
	}
	state := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "/bin/cat >>" + out + "; echo >>" + out}}
	fails := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo what is wrong >&2; exit 3"}}
	hangs := specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &second}
	r := room{id: "c", bundle: "/b", spec: &specs.Spec{Version: "1.1.0", Annotations: map[string]string{"k": "v"}}}
	r.vmm.Store(7)
	for _, tt := range []struct {
		name  string
		hooks []specs.Hook
		want  string // of what they have written, a word each
		says  []string
	}{
		{"in order", []specs.Hook{say("one$HOME"), say("two")}, "one two", nil},
		{"one fails", []specs.Hook{say("one"), fails, say("two")}, "one", []string{"kind hook 1 (/bin/sh)", "exit status 3", "what is wrong"}},
		{"one hangs", []specs.Hook{say("one"), hangs, say("two")}, "one", []string{"kind hook 1 (/bin/sleep)", "killed"}},
		{"one is not there", []specs.Hook{{Path: "/nonexistent/hook"}, say("two")}, "", []string{"kind hook 0 (/nonexistent/hook)", "no such file"}},
		{"none", nil, "", nil},
	} {
		for _, all := range []bool{false, true} {
			run, want := runHooks, tt.want
			if all {
				run = runAllHooks
				if len(tt.hooks) > 0 && !strings.HasSuffix(want, "two") {
					want = strings.TrimSpace(want + " two")
				}
			}
			os.Remove(out)
			err := run(t.Context(), "kind", tt.hooks, r.state(specs.StateCreating))
			if (err == nil) != (len(tt.says) == 0) {
				t.Errorf("%s: %v", tt.name, err)
			}
			for _, s := range tt.says {
				if err != nil && !strings.Contains(err.Error(), s) {
					t.Errorf("%s: %q is not in %v", tt.name, s, err)
				}
			}
			b, _ := os.ReadFile(out)
			got := strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", " ")
			if got = strings.ReplaceAll(got, "own-name b ", ""); strings.ReplaceAll(got, "sh b ", "") != want {
				t.Errorf("%s, all of them %v: they write %q, want %q", tt.name, all, got, want)
			}
		}
	}
	for status, pid := range map[specs.ContainerState]int{specs.StateCreating: 7, specs.StateStopped: 0} {
		os.Remove(out)
		if err := runHooks(t.Context(), "kind", []specs.Hook{state}, r.state(status)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		var got specs.State
		if err := json.Unmarshal(b, &got); err != nil || got.ID != "c" || got.Bundle != "/b" || got.Status != status || got.Pid != pid || got.Version != "1.1.0" || got.Annotations["k"] != "v" {
			t.Errorf("a hook reads %s: %v", b, err)
		}
	}
}
