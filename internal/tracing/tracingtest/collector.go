// Package tracingtest has tests collect spans and look at them: those that programs
// send, with a collector, and those of one process.
package tracingtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/internal/tracing/tree"
)

// CollectorEnv names the environment variable with the directory of a collector, otelcol,
// as `make collector` builds it into bin; without one tests have one of a few lines.
const CollectorEnv = "SKEP_COLLECTOR"

// Collector takes spans in and writes them to a file.
type Collector struct {
	t        testing.TB
	Endpoint string // http://host:port
	File     string // what it has written: OTLP in JSON
}

// Collect starts a collector.
func Collect(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{t: t, File: filepath.Join(t.TempDir(), "traces.json")}
	if dir := os.Getenv(CollectorEnv); dir != "" {
		c.run(filepath.Join(dir, "otelcol"))
		return c
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(c.take)}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	c.Endpoint = "http://" + l.Addr().String()
	return c
}

// take does as a collector does with what is sent to it.
func (c *Collector) take(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	q := ptraceotlp.NewExportRequest()
	if err == nil {
		err = q.UnmarshalProto(body)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(r.URL.Path, ": ", err), http.StatusBadRequest)
		return
	}
	m := ptrace.JSONMarshaler{}
	line, err := m.MarshalTraces(q.Traces())
	if err == nil {
		err = c.add(append(line, '\n'))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer, _ := ptraceotlp.NewExportResponse().MarshalProto()
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}

func (c *Collector) add(line []byte) error {
	f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(line); err != nil {
		return err
	}
	return f.Close()
}

// run starts a program that is a collector.
func (c *Collector) run(program string) {
	c.t.Helper()
	address := testenv.FreeAddress(c.t)
	c.Endpoint = "http://" + address
	config := filepath.Join(c.t.TempDir(), "config.yaml")
	text := fmt.Sprintf(`receivers: {otlp: {protocols: {http: {endpoint: %q}}}}
exporters: {file: {path: %q, flush_interval: 100ms}}
service:
  telemetry: {metrics: {level: none}}
  pipelines: {traces: {receivers: [otlp], exporters: [file]}}
`, address, c.File)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(program, "--config", config)
	var said testenv.Output
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for end := time.Now().Add(testenv.Limit(c.t, 30*time.Second)); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s does not listen: %v\n%s", program, err, said.Tail(4000))
		}
	}
}

// Traces are those that have been written so far.
func (c *Collector) Traces() ([]*tree.Trace, error) {
	b, err := os.ReadFile(c.File)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// What is being written has no end yet.
	return tree.Read(bytes.NewReader(b[:bytes.LastIndexByte(b, '\n')+1]))
}

// Await waits until there is a trace that is as wanted, and returns it.
func (c *Collector) Await(what string, want func(*tree.Trace) bool) *tree.Trace {
	c.t.Helper()
	for end := time.Now().Add(testenv.Limit(c.t, 30*time.Second)); ; time.Sleep(50 * time.Millisecond) {
		all, err := c.Traces()
		if err != nil {
			c.t.Fatal(err)
		}
		for _, t := range all {
			if want(t) {
				return t
			}
		}
		if time.Now().After(end) {
			var b bytes.Buffer
			for _, t := range all {
				_ = t.Text(&b, 120)
			}
			c.t.Fatalf("there is no trace of %s; there are %d:\n%s", what, len(all), b.String())
		}
	}
}
