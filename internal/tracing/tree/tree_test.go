package tree

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"

// line is a batch of one span, as a collector writes it.
func line(trace, id, parent, name string, from, to time.Duration, more string) string {
	at := func(d time.Duration) int64 { return 1_700_000_000_000_000_000 + int64(d) }
	return fmt.Sprintf(`{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"skep"}}]},"scopeSpans":[{"scope":{"name":"github.com/skep-dev/skep"},"spans":[{"traceId":%q,"spanId":%q,"parentSpanId":%q,"name":%q,"startTimeUnixNano":"%d","endTimeUnixNano":"%d"%s}]}]}]}`+"\n",
		trace, id, parent, name, at(from), at(to), more)
}

// Spans come in any order and in any number of batches; those whose parents are elsewhere
// are roots.
func TestRead(t *testing.T) {
	text := line(traceID, "000000000000000c", "000000000000000b", "resume", 30*time.Millisecond, 40*time.Millisecond, "") +
		line("11111111111111111111111111111111", "0000000000000001", "", "earlier", -time.Second, 0, "") +
		line(traceID, "000000000000000b", "000000000000000a", "restore microVM", 10*time.Millisecond, 40*time.Millisecond, `,"status":{"code":2,"message":"it hangs"}`) +
		line(traceID, "000000000000000d", "000000000000000b", "load", 20*time.Millisecond, 30*time.Millisecond, "") +
		line(traceID, "000000000000000a", "00f067aa0ba902b7", "GET shop", 0, 100*time.Millisecond, `,"attributes":[{"key":"skep.invocation","value":{"stringValue":"4f1d2c3b5a697887"}},{"key":"skep.queue_us","value":{"intValue":"7"}}]`)
	all, err := Read(strings.NewReader(text))
	if err != nil || len(all) != 2 || all[0].Name() != "earlier" {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, id := range []string{traceID, "4f1d2c3b5a697887"} {
		if got, err := Find(all, id); err != nil || got != all[1] {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
	if _, err := Find(all, "no such"); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	var names []string
	all[1].Each(func(s *Span, depth int) { names = append(names, strings.Repeat(">", depth)+s.Name+s.Error) })
	if got := strings.Join(names, " "); got != "GET shop >restore microVMit hangs >>load >>resume" {
		t.Errorf("its spans are %s", got)
	}
	if root := all[1].Roots[0]; root.Attrs["skep.queue_us"] != "7" || root.Parent != "00f067aa0ba902b7" || root.Took != 100*time.Millisecond {
		t.Errorf("its first is %+v", root)
	}
	var b bytes.Buffer
	if err := all[1].Text(&b, 60); err != nil {
		t.Fatal(err)
	}
	want := `trace ` + traceID + `  2023-11-14T22:13:20Z  GET shop
SPAN                   AT ms   TOOK ms
GET shop               0.000   100.000 █████████████████████
  restore microVM     10.000    30.000   ██████
    ! it hangs
    load              20.000    10.000     ██
    resume            30.000    10.000       ██
`
	if b.String() != want {
		t.Errorf("it is shown as\n%swant\n%s", b.String(), want)
	}
	if _, err := Read(strings.NewReader(text + "not JSON\n")); err == nil || !strings.Contains(err.Error(), "line 6") {
		t.Errorf("what is no OTLP: %v", err)
	}
}

// A record is a trace too: its phases follow one another, a container's steps are where
// they were.
func TestOfRecord(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	ms := time.Millisecond
	rec := api.Invocation{ID: "r1", Function: "shop", Time: at, Phases: api.Phases{Queue: 1 * ms, Spawn: 2 * ms, Load: 3 * ms, Process: 4 * ms, Total: 10 * ms}}
	names := func(of *Trace) string {
		var list []string
		of.Each(func(s *Span, depth int) {
			list = append(list, fmt.Sprintf("%s%s@%d+%d", strings.Repeat(">", depth), s.Name, s.Began.Sub(at)/ms, s.Took/ms))
		})
		return strings.Join(list, " ")
	}
	if got := names(OfRecord(rec)); got != "shop@0+10 >queue@0+1 >spawn@1+2 >load@3+3 >process@6+4" {
		t.Errorf("it is %s", got)
	}
	rec.Container = &api.Container{Steps: []api.Step{{Name: "disk", Began: at.Add(ms), Took: ms}, {Name: "guest", Began: at.Add(2 * ms), Took: 6 * ms}}}
	if got := names(OfRecord(rec)); got != "shop@0+10 >disk@1+1 >guest@2+6 >>spawn@2+2 >>load@4+3" {
		t.Errorf("a container's is %s", got)
	}
}
