package containerd

import (
	_ "embed"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skep-dev/skep/shim/shimtest"
)

// cannot are the cases of critest that a microVM cannot pass, each with the reason:
// a line of the file is the case's name, a tab and the reason.
//
//go:embed testdata/critest.tsv
var cannot string

func readCannot(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(cannot) {
		name, reason, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok || name == "" || reason == "" || all[name] != "" {
			t.Fatalf("testdata/critest.tsv: line %q: want a case that was not there before, a tab and the reason", line)
		}
		all[name] = reason
	}
	return all
}

// The table in the documents is the one that the test holds.
func TestCritestTable(t *testing.T) {
	b, err := os.ReadFile("../../docs/critest.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, reason := range readCannot(t) {
		if row := "| " + name + " | " + reason + " |"; !strings.Contains(string(b), row) {
			t.Errorf("docs/critest.md has no row %s", row)
		}
	}
}

// critestEnv asks for critest: all, or a regular expression of cases.
const critestEnv = "SKEP_CRITEST"

// Every case of critest that passes with runc as the runtime handler passes with
// skep, or is known as one that a microVM cannot pass; and of those none passes.
func TestCritest(t *testing.T) {
	focus := os.Getenv(critestEnv)
	if focus == "" {
		t.Skipf("takes many minutes: ask for it with %s=all, or with a regular expression of cases", critestEnv)
	}
	if focus == "all" {
		focus = ""
	}
	eachVMWith(t, shimtest.Options{CRI: true}, func(t *testing.T, c *shimtest.Containerd) {
		if strings.HasPrefix(c.Version, "1.") {
			t.Skip("critest gives pods a cgroup of systemd's where containerd does not say whose cgroups it wants: have one of 2.x in SKEP_CONTAINERD")
		}
		p := shimtest.CRI(t, c)
		p.Registries()
		known := readCannot(t)
		base := p.Critest("runc", focus)
		notOurs, refused := map[string]bool{}, 0 // what this host or the images lack, and what is known
		for _, x := range base {
			if x.State == "failed" {
				notOurs[x.Name] = true
				t.Logf("runc fails: %s: %s", x.Name, x.Why)
			}
		}
		all := p.Critest("skep", focus)
		for _, x := range all {
			switch {
			case x.State == "passed" && known[x.Name] != "":
				t.Errorf("passes, though it is said that it cannot (%s): %s", known[x.Name], x.Name)
			case x.State == "passed", x.State == "skipped":
			case notOurs[x.Name]:
				t.Logf("skep fails, as runc does: %s: %s", x.Name, x.Why)
			case known[x.Name] == "":
				t.Errorf("%s: %s: %s", x.State, x.Name, x.Why)
			default:
				refused++
			}
		}
		t.Logf("runc: %s; skep: %s, of which %d are what a microVM cannot", count(base), count(all), refused)
	})
}

func count(cases []shimtest.Case) string {
	n := map[string]int{}
	for _, c := range cases {
		n[c.State]++
	}
	var words []string
	for _, state := range slices.Sorted(maps.Keys(n)) {
		words = append(words, state+" "+strconv.Itoa(n[state]))
	}
	return strings.Join(words, ", ")
}
