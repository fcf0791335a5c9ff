package kubernetes

import (
	_ "embed"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// conformanceEnv names a directory with Knative Serving's conformance tests, compiled:
// programs *.test of test/conformance, manifests *.yaml of test/config, and in images/
// the programs of test/test_images.
const conformanceEnv = "SKEP_KNATIVE_CONFORMANCE"

// casesEnv names a regular expression of cases, as -test.run takes it; without it, all are run.
const casesEnv = "SKEP_KNATIVE_CASES"

// cannotConform are the cases that fail with a microVM for the container that serves, each
// with the reason: a line of the file is the case's name, a tab and the reason.
//
//go:embed testdata/conformance.tsv
var cannotConform string

func readCannotConform(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(cannotConform) {
		name, reason, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !ok || name == "" || reason == "" || all[name] != "" {
			t.Fatalf("testdata/conformance.tsv: line %q: want a case that was not there before, a tab and the reason", line)
		}
		all[name] = reason
	}
	return all
}

// The table in the documents is the one that the test holds.
func TestConformanceTable(t *testing.T) {
	b, err := os.ReadFile("../../docs/knative-conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, reason := range readCannotConform(t) {
		if row := "| " + name + " | " + reason + " |"; !strings.Contains(string(b), row) {
			t.Errorf("docs/knative-conformance.md has no row %s", row)
		}
	}
}

// Every case of Knative's conformance tests that passes with runc passes with skep, or is
// known as one that a microVM cannot pass; and of those none passes.
func TestKnativeConformance(t *testing.T) {
	dir := os.Getenv(conformanceEnv)
	var missing error
	if dir == "" {
		missing = fmt.Errorf("%s is not set", conformanceEnv)
	}
	testenv.NeedThat(t, "knative-conformance", missing, "have "+conformanceEnv+" name a directory with Knative's conformance tests (docs/knative-conformance.md)")
	n := onKnative(t)
	s := n.suite(dir)
	known := readCannotConform(t)
	base := s.run("runc")
	all := s.run("skep")
	if len(all) == 0 || len(all) != len(base) {
		t.Errorf("%d cases were run with runc, %d with skep", len(base), len(all))
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch got := all[name]; {
		case got.state == "PASS" && known[name] != "":
			t.Errorf("passes, though it is said that it cannot (%s): %s", known[name], name)
		case got.state == "PASS", got.state == "SKIP":
		case base[name].state == "FAIL":
			t.Logf("fails with skep, as with runc: %s: %s", name, base[name].said)
		case known[name] == "":
			t.Errorf("fails: %s: %s", name, got.said)
		}
	}
	t.Logf("runc: %s; skep: %s", states(base), states(all))
}

// suite is the conformance tests, in a cluster.
type suite struct {
	*node
	dir      string   // in the node
	programs []string // there
}

// suite has the cluster ready for the tests of a directory.
func (n *node) suite(dir string) suite {
	n.Helper()
	programs, err := filepath.Glob(filepath.Join(dir, "images/*"))
	if err != nil || len(programs) == 0 {
		n.Fatalf("%s/images has no programs: %v", dir, err)
	}
	for _, p := range programs {
		b, err := os.ReadFile(p)
		if err != nil {
			n.Fatal(err)
		}
		// As ko makes them, of a base without root's user.
		name := filepath.Base(p)
		img := shimtest.Image(n, v1.Config{Entrypoint: []string{"/ko-app/" + name}, User: "65532", WorkingDir: "/home/nonroot", Env: []string{"PATH=/ko-app:/usr/bin:/bin"}}, []shimtest.File{
			{Name: "ko-app/"}, {Name: "ko-app/" + name, Mode: 0o755, Content: string(b)},
			{Name: "etc/passwd", Content: "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n"}, {Name: "etc/group", Content: "root:x:0:\nnonroot:x:65532:\n"},
			{Name: "tmp/", Mode: 0o1777}, {Name: "home/nonroot/", Mode: 0o700, UID: 65532, GID: 65532}, {Name: "proc/"}, {Name: "sys/"}, {Name: "dev/"},
		})
		if err := n.c.Import(n.Context(), "dev.local/"+name+":v1", img); err != nil {
			n.Fatal(err)
		}
	}
	manifests, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(manifests) == 0 {
		n.Fatalf("%s has no manifests (*.yaml): %v", dir, err)
	}
	for _, m := range manifests {
		b, err := os.ReadFile(m)
		if err != nil {
			n.Fatal(err)
		}
		n.apply(string(b))
	}
	// As Knative has them for these tests: a domain needs no claim of an administrator's, and a
	// revision that does not come up has failed before they give up.
	n.kubectl("-n", "knative-serving", "patch", "configmap/config-network", "--type=merge", "--patch", `{"data": {"autocreate-cluster-domain-claims": "true"}}`)
	n.kubectl("-n", "knative-serving", "patch", "configmap/config-deployment", "--type=merge", "--patch", `{"data": {"progress-deadline": "120s"}}`)
	s := suite{node: n, dir: filepath.Join(n.c.Dir(), "conformance")}
	tests, err := filepath.Glob(filepath.Join(dir, "*.test"))
	if err != nil || len(tests) == 0 {
		n.Fatalf("%s has no programs *.test: %v", dir, err)
	}
	for _, t := range tests {
		if err := copyFile(t, filepath.Join(s.dir, filepath.Base(t))); err != nil {
			n.Fatal(err)
		}
		s.programs = append(s.programs, filepath.Base(t))
	}
	return s
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// verdict is how a case went, and what it said.
type verdict struct{ state, said string }

// run runs the tests, with all services in a runtime class; "runc" is none. The result
// has no tests that went as one of their subtests did, which it has.
func (s suite) run(runtime string) map[string]verdict {
	s.Helper()
	classes := ""
	if runtime != "runc" {
		classes = runtime + ": {}"
	}
	s.kubectl("-n", "knative-serving", "patch", "configmap/config-deployment", "--type=merge", "--patch", fmt.Sprintf(`{"data": {"runtime-class-name": %q}}`, classes))
	all := map[string]verdict{}
	for _, name := range s.programs {
		cmd := s.c.Command(s.Context(), filepath.Join(s.dir, name), "-test.v", "-test.run="+os.Getenv(casesEnv), "-test.parallel=3", "-test.timeout=50m", "--kubeconfig="+s.c.Kubeconfig(), "--dockerrepo=dev.local", "--tag=v1",
			"--ingressendpoint="+s.get("nodes", ".items[0].status.addresses[0].address"), "--enable-alpha", "--enable-beta", "--disable-logstream")
		cmd.Env = append(cmd.Env, "GATEWAY_OVERRIDE=kourier", "GATEWAY_NAMESPACE_OVERRIDE=kourier-system")
		path := filepath.Join(s.dir, name+"-"+runtime+".log")
		log, err := os.Create(path)
		if err != nil {
			s.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = log, log
		failed := cmd.Run() // as it has to where a case fails
		if _, err = log.Seek(0, io.SeekStart); err != nil {
			s.Fatal(err)
		}
		b, err := io.ReadAll(log)
		log.Close()
		if err != nil {
			s.Fatal(err)
		}
		found := verdicts(string(b))
		if !endLine.Match(b) {
			s.Fatalf("%s with %s did not run to its end: %v: %s", name, runtime, failed, b[max(0, len(b)-3000):])
		}
		for test, v := range found {
			all[strings.TrimSuffix(name, ".test")+"/"+test] = v
		}
	}
	return all
}

var (
	endLine    = regexp.MustCompile(`(?m)^(PASS|FAIL)$`)
	resultLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
	whoseLine  = regexp.MustCompile(`^=== (?:RUN|CONT|NAME|PAUSE)\s+(\S+)`)
)

// verdicts reads what a test program says with -test.v.
func verdicts(out string) map[string]verdict {
	all, said, whose := map[string]verdict{}, map[string]string{}, ""
	for line := range strings.Lines(out) {
		if m := whoseLine.FindStringSubmatch(line); m != nil {
			whose = m[1]
		} else if m := resultLine.FindStringSubmatch(line); m != nil {
			all[m[2]] = verdict{state: m[1]}
		} else if strings.Contains(line, "_test.go:") {
			said[whose] = strings.TrimSpace(line) // the last is the one to which it came
		}
	}
	for name, v := range all {
		v.said = said[name]
		all[name] = v
	}
	counted := maps.Clone(all)
	maps.DeleteFunc(counted, func(name string, v verdict) bool {
		for other, o := range all { // which says the same
			if strings.HasPrefix(other, name+"/") && o.state == v.state {
				return true
			}
		}
		return false
	})
	return counted
}

func TestVerdicts(t *testing.T) {
	const out = `=== RUN   TestA
    a_test.go:1: begun
=== RUN   TestA/one
=== PAUSE TestA/one
=== RUN   TestA/two
    a_test.go:7: not so
=== NAME  TestA
    a_test.go:9: on
--- FAIL: TestA (1.00s)
    --- PASS: TestA/one (0.10s)
    --- FAIL: TestA/two (0.10s)
=== RUN   TestB
    b_test.go:3: not here
--- SKIP: TestB (0.00s)
=== RUN   TestC
=== RUN   TestC/digest
    c_test.go:4: no registry
=== NAME  TestC
    c_test.go:5: wrong
--- FAIL: TestC (0.10s)
    --- SKIP: TestC/digest (0.00s)
FAIL
`
	want := map[string]verdict{"TestA/one": {state: "PASS"}, "TestA/two": {"FAIL", "a_test.go:7: not so"}, "TestB": {"SKIP", "b_test.go:3: not here"},
		"TestC": {"FAIL", "c_test.go:5: wrong"}, "TestC/digest": {"SKIP", "c_test.go:4: no registry"}}
	if got := verdicts(out); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func states(all map[string]verdict) string {
	n := map[string]int{}
	for _, v := range all {
		n[v.state]++
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", n["PASS"], n["FAIL"], n["SKIP"])
}
