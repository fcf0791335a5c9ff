package containerd

import (
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/tracing/tracingtest"
	"github.com/skep-dev/skep/internal/tracing/tree"
	"github.com/skep-dev/skep/shim/ledger"
	"github.com/skep-dev/skep/shim/shimtest"
)

// A container's start is traced up to what serves its memory: below containerd's calls
// where containerd says of which trace these are, else by itself.
func TestTrace(t *testing.T) {
	collector := tracingtest.Collect(t)
	env := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.Endpoint, "OTEL_BSP_SCHEDULE_DELAY=100"}
	eachVMWith(t, shimtest.Options{Env: env}, func(t *testing.T, c *shimtest.Containerd) {
		id := "traced-" + strings.ReplaceAll(c.Version, ".", "-")
		c.Starts(id, args("run", "-d", vm, "--annotation", "skep.dev/policy=reap", shimtest.ProbeImage, id, "serve", "8080")...)
		get(c, id, "/")
		end(c, id)
		has := func(s *tree.Trace, name string) *tree.Span {
			for path, span := range tracingtest.Paths(s) {
				if strings.HasSuffix("/"+path, "/"+name) && span.Attrs["container.id"] == id {
					return span
				}
			}
			return nil
		}
		create := collector.Await("the create call", func(s *tree.Trace) bool { return has(s, "create") != nil })
		start := collector.Await("the start call", func(s *tree.Trace) bool { return has(s, "start") != nil })
		for _, s := range []*tree.Trace{create, start} {
			tracingtest.Within(t, s, "memory")
		}
		spans := map[string]*tree.Span{}
		for path, s := range tracingtest.Paths(create) {
			if _, below, ok := strings.Cut("/"+path, "/create/"); ok {
				spans[below] = s
			}
		}
		for _, name := range []string{"disk", "network", "guest", "guest/restore microVM", "guest/restore microVM/load", "guest/memory", "furnish"} {
			if spans[name] == nil {
				t.Errorf("there is no span %s among those of the create call, %v", name, spans)
			}
		}
		if m := spans["guest/memory"]; m != nil && (m.Attrs["skep.policy"] != "reap" || m.Attrs["skep.memory.faults"] == "") {
			t.Errorf("its memory's span says %v", m.Attrs)
		}
		root := create.Roots[0]
		switch daemon := strings.HasPrefix(c.Version, "1."); {
		case daemon && (root.Name != "start container" || start.ID != create.ID):
			t.Errorf("containerd says nothing, and the start is in traces %s and %s, of %s", create.ID, start.ID, root.Name)
		case !daemon && root.Service != "containerd":
			t.Errorf("the trace begins with %s of %q, want containerd's", root.Name, root.Service)
		}
	})
}

// Every container leaves a record, of its start and of its end, in a database.
func TestRecords(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		id := "recorded-" + strings.ReplaceAll(c.Version, ".", "-")
		if r := c.Run(args("run", "--rm", vm, "--annotation", "skep.dev/policy=reap", shimtest.ProbeImage, id, "exit", "3")...); r.Code != 3 {
			t.Fatalf("it ended with %d: %s", r.Code, r.Stderr)
		}
		if r := c.Run(args("run", "--rm", vm, shimtest.ProbeImage, id+"-not", "/bin/nothing")...); r.Code == 0 {
			t.Fatal("what is not there can be run")
		}
		records, err := ledger.Open(t.Context(), shimtest.DataDir(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer records.Close()
		of := func(function string) api.Invocation {
			t.Helper()
			for end := time.Now().Add(c.Limit(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
				list, err := records.Invocations(t.Context(), api.InvocationQuery{Function: function})
				if err != nil {
					t.Fatal(err)
				}
				if len(list) == 1 && list[0].Container.Exit != nil {
					return list[0]
				}
				if time.Now().After(end) {
					t.Fatalf("the records of %s are %+v", function, list)
				}
			}
		}
		rec := of(id)
		sum := -rec.Phases.Total
		rec.Phases.Each(func(_ string, d time.Duration) { sum += d })
		if diff := rec.Phases.Total - sum; diff < 0 || diff > 20*time.Microsecond { // each is cut to microseconds
			t.Errorf("its phases are %+v, which is %v, not the total", rec.Phases, sum)
		}
		if rec.Start != api.StartRestore || rec.Snapshot == "" || rec.Phases.Load == 0 || rec.Container.Image == "" || rec.Container.Exit.Code != 3 {
			t.Errorf("it is %+v of %+v", rec, *rec.Container)
		}
		if rec.Memory == nil || rec.Memory.Policy != "reap" || rec.Memory.Faults+rec.Memory.Prefetched == 0 {
			t.Errorf("its memory is %+v", rec.Memory)
		}
		for i, step := range rec.Container.Steps {
			if step.Began.Before(rec.Time) || i > 0 && step.Began.Before(rec.Container.Steps[i-1].Began) {
				t.Errorf("step %d of %+v is not where it belongs", i, rec.Container.Steps)
			}
		}
		if not := of(id + "-not"); not.Failure != api.FailurePlatform || !strings.Contains(not.Error, "/bin/nothing") {
			t.Errorf("of what could not be started it says %q %q", not.Failure, not.Error)
		}
	})
}
