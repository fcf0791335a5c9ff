package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/internal/tracing/tracingtest"
	"github.com/skep-dev/skep/internal/tracing/tree"
)

// TestTrace has a cold start be one trace: below the client's span, from the gateway to
// the serving of page faults, each span within the time of the one above it, and as long
// as the record says. The function is told of it.
func TestTrace(t *testing.T) {
	c := tracingtest.Collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.Endpoint)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	d := start(t)
	d.hello("hello")
	const id, above = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	header := http.Header{"Traceparent": {"00-" + id + "-" + above + "-01"}}
	a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/headers", Header: header, Policy: "stream"})
	if a.err != nil || a.status != 200 {
		t.Fatalf("%+v", a)
	}
	rec := d.records("hello", 1)[0]
	if rec.Trace != id {
		t.Errorf("its record is of trace %q", rec.Trace)
	}
	got := c.Await("the start", func(s *tree.Trace) bool {
		return s.ID == id && len(s.Roots) == 1 && s.Roots[0].Name == "GET hello"
	})
	root := got.Roots[0]
	if root.Parent != above || root.Service != "skep" {
		t.Errorf("it is %+v", root)
	}
	tracingtest.Within(t, got)
	spans := tracingtest.Paths(got)
	const start = "GET hello/acquire/start instance"
	at := map[string]string{"slot": start + "/slot", "connect": "GET hello/request/connect", "process": "GET hello/request/process", "stream": "GET hello/request/stream"}
	rec.Phases.Each(func(name string, d time.Duration) {
		path := at[name]
		switch {
		case name == "queue", name == "total", d == 0:
			return
		case path == "":
			path = start + "/restore microVM/" + name
		}
		s := spans[path]
		if s == nil {
			t.Errorf("%s took %v, and there is no span %s", name, d, path)
		} else if off := s.Took - d; off < 0 || off >= time.Microsecond { // records have microseconds
			t.Errorf("%s took %v, its span %v", name, d, s.Took)
		}
	})
	memory := spans["GET hello/memory"]
	switch {
	case memory == nil:
		t.Error("there is no span of what served its memory")
	case rec.Memory == nil || memory.Attrs["skep.memory.faults"] != fmt.Sprint(rec.Memory.Faults) || memory.Attrs["skep.policy"] != "stream":
		t.Errorf("its memory's figures are %v, the record's %+v", memory.Attrs, rec.Memory)
	}
	if request := spans["GET hello/request"]; request == nil || !strings.Contains(a.body, "Traceparent: 00-"+id+"-"+request.ID+"-01\n") {
		t.Errorf("the function was told %q, its request is %+v", a.body, request)
	}
	if root.Attrs["faas.coldstart"] != "true" || root.Attrs["skep.invocation"] != rec.ID || root.Attrs["skep.queue_us"] != fmt.Sprint(rec.Phases.Queue.Microseconds()) {
		t.Errorf("its attributes are %v", root.Attrs)
	}
	// It can be looked at, by the trace's id and by the invocation's, and drawn.
	for _, args := range [][]string{{c.File, id}, {c.File, rec.ID}, {rec.ID}} {
		if out := d.mustCLI(append([]string{"trace"}, args...)...); !strings.Contains(out, "process") || !strings.Contains(out, "resume") {
			t.Errorf("skep trace %q says\n%s", args, out)
		}
	}
	picture := filepath.Join(t.TempDir(), "start.svg")
	d.mustCLI("trace", c.File, id, "-o", picture)
	if b, err := os.ReadFile(picture); err != nil || !strings.Contains(string(b), ">restore microVM<") {
		t.Errorf("the picture is %.200q, %v", b, err)
	}
}

// TestTraceWithoutCollector has a collector that is not there, or takes nothing, be no
// reason for a request to wait, or the daemon's end.
func TestTraceWithoutCollector(t *testing.T) {
	for name, endpoint := range map[string]string{"not there": "http://" + testenv.FreeAddress(t), "silent": silent(t)} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
			d := start(t, "otlp_endpoint = '"+endpoint+"'")
			d.hello("hello")
			for range 3 {
				d.mustGet("hello", "/")
			}
			d.invoke(api.InvokeRequest{Function: "hello", Policy: "stream"})
			began := time.Now()
			d.down()
			t.Logf("the daemon ended after %v", time.Since(began))
		})
	}
}

// silent is the address of a collector that takes connections, and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, conn) }() // until the other closes it
		}
	}()
	return "http://" + l.Addr().String()
}
