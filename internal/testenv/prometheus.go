package testenv

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Prometheus is one that reads metrics at an address.
type Prometheus struct {
	t   testing.TB
	url string
	log *Output
}

// StartPrometheus has one up, Debian's or another on the PATH, that reads the metrics at
// HOST:PORT every second, as the job skep, and evaluates the alerts of a file; or skips.
func StartPrometheus(t testing.TB, metrics, rules string, flags ...string) *Prometheus {
	t.Helper()
	for _, program := range []string{"prometheus", "promtool"} {
		_, err := exec.LookPath(program)
		NeedThat(t, "prometheus", err, "apt-get install prometheus")
	}
	dir, address := t.TempDir(), FreeAddress(t)
	alerts, err := filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n- {job_name: skep, static_configs: [{targets: [%q]}]}\n", alerts, metrics)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Prometheus{t, "http://" + address, &Output{}}
	cmd := exec.Command("prometheus", append([]string{"--config.file=" + filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + address}, flags...)...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	return p
}

// Query returns how many series a query has, and the first of them.
func (p *Prometheus) Query(expr string) (n int, first string, err error) {
	var out struct {
		Error string
		Data  struct{ Result []json.RawMessage }
	}
	if err := p.get("/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &out); err != nil {
		return 0, "", err
	}
	if out.Error != "" {
		return 0, "", fmt.Errorf("%s: %s", expr, out.Error)
	}
	if len(out.Data.Result) > 0 {
		first = string(out.Data.Result[0])
	}
	return len(out.Data.Result), first, nil
}

// Sees waits until a query has a series.
func (p *Prometheus) Sees(expr string) string {
	p.t.Helper()
	for deadline := time.Now().Add(Limit(p.t, time.Minute)); ; time.Sleep(200 * time.Millisecond) {
		n, first, err := p.Query(expr)
		if n > 0 {
			return first
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("never %s (%v)\n%s", expr, err, p.log.Tail(2000))
		}
	}
}

// Alerts waits until every alert was evaluated, wants that to go well, and counts them.
func (p *Prometheus) Alerts() int {
	p.t.Helper()
	for deadline := time.Now().Add(Limit(p.t, time.Minute)); ; time.Sleep(200 * time.Millisecond) {
		var rules struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health, LastError string }
				}
			}
		}
		if err := p.get("/api/v1/rules", &rules); err != nil {
			p.t.Fatal(err)
		}
		n, waits := 0, 0
		for _, g := range rules.Data.Groups {
			for _, r := range g.Rules {
				n++
				switch r.Health {
				case "ok":
				case "unknown":
					waits++
				default:
					p.t.Errorf("alert %s: %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		if waits == 0 || time.Now().After(deadline) {
			return n - waits
		}
	}
}

func (p *Prometheus) get(path string, out any) error {
	resp, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

// CheckMetrics has Prometheus' own tool look at names, kinds and helps of what a daemon
// answers to a scrape.
func CheckMetrics(t testing.TB, text string) {
	t.Helper()
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
