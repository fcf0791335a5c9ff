package containerd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// TestBench measures each kind of start once, and two at once.
func TestBench(t *testing.T) {
	skep := testenv.Program(t, "cmd/skep")
	agent, hello := testenv.Program(t, "cmd/skep-agent"), testenv.Program(t, "functions/hello")
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		out := filepath.Join(c.Dir, "samples.jsonl")
		cmd := c.Command(skep, "bench", "containerd", "--containerd-address", c.Address, "--shim-data-dir", shimtest.DataDir(t),
			"--data-dir", filepath.Join(c.Dir, "node"), "--kernel-dir", testenv.KernelStore(t), "-n", "1", "--policy", "reap", "--at-once", "2", "--out", out)
		cmd.Env = append(cmd.Env, "SKEP_AGENT="+agent, "SKEP_HELLO="+hello, "XDG_CACHE_HOME="+filepath.Join(c.Dir, "cache"))
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		t.Logf("%s", text)
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for i, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
			var s struct {
				Variant, Until string
				Took           int64 `json:"took_ns"`
				Shim           int64 `json:"shim_bytes"`
			}
			if err := json.Unmarshal(line, &s); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if i == 0 {
				continue // the machine
			}
			if seen[s.Variant+" "+s.Until]++; s.Took <= 0 || s.Shim == 0 {
				t.Errorf("%s", line)
			}
		}
		for kind, want := range map[string]int{"runc answer": 3, "runc exit": 1, "boot answer": 3, "boot exit": 1, "restore reap answer": 3, "restore reap exit": 1, "ready reap answer": 3, "node reap answer": 3} {
			if seen[kind] != want {
				t.Errorf("%d samples of %s: want %d", seen[kind], kind, want)
			}
		}
		if left := strings.Fields(c.Must("namespaces", "list", "--quiet")); len(left) != 1 || left[0] != "default" {
			t.Errorf("containerd has namespaces %q: want only the test's own", left)
		}
	})
}
