package page

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
	"github.com/skep-dev/skep/experiment/results"
	"github.com/skep-dev/skep/internal/testenv"
)

// site serves the page over a node without machines, and comes back at its address.
type site struct {
	t        *testing.T
	node     *controltest.Node
	sessions *control.Sessions
	results  results.Dir
	broken   atomic.Bool // whether its lists cannot be read
	address  string
	end      func()
}

func newSite(t *testing.T, functions ...string) *site {
	n := controltest.New(functions...)
	n.SnapshotList = []api.Snapshot{{ID: "hello-1", Function: "hello", Created: time.Now(), Reason: "ready", Usable: true, MemoryMiB: 1, DiskBytes: 1 << 20}}
	n.Records = []api.Invocation{
		record("r2", api.StartWarm, api.Phases{Connect: time.Millisecond, Process: 4 * time.Millisecond}),
		record("r1", api.StartRestore, api.Phases{Spawn: 50 * time.Millisecond, Load: 6 * time.Millisecond, Clone: 200 * time.Millisecond, Process: 110 * time.Millisecond}),
	}
	s := &site{t: t, node: n, sessions: control.NewSessions(), address: testenv.FreeAddress(t)}
	s.up()
	t.Cleanup(func() { s.end() })
	return s
}

func record(id string, start api.StartKind, p api.Phases) api.Invocation {
	var total time.Duration
	p.Each(func(_ string, d time.Duration) { total += d })
	p.Total = total
	return api.Invocation{ID: id, Function: "hello", Instance: "i1", Start: start, Time: time.Now(), Status: 200, Phases: p}
}

func (s *site) up() {
	closing := make(chan struct{})
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for more := true; more; more = r.PathValue("path") == "endless" && r.Context().Err() == nil {
			fmt.Fprintf(w, "<b>%s of %s</b>", r.Method, r.PathValue("name"))
		}
	})
	h, err := control.RequireToken(strings.Repeat("t", 32), s.sessions, control.New(control.Options{
		Node: s.node, Invoke: echo, Closing: closing, Version: api.Version{Version: "v1", Go: "go1"},
		URL: func(f string) string { return "http://" + f + ".localhost:7080/" }, Sessions: s.sessions, Results: s.results,
	}).Handler())
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	sometimes := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.broken.Load() && r.URL.Path == "/v1/snapshots" {
			control.WriteError(w, &api.Error{Status: http.StatusInternalServerError, Message: "disk I/O error"})
			return
		}
		h.ServeHTTP(w, r)
	})
	go func() { done <- control.Serve(ctx, l, control.Page(s.sessions, sometimes), time.Second) }()
	s.end = func() {
		close(closing)
		cancel()
		<-done
		s.end = func() {}
	}
}

func (s *site) enter(b *browser) {
	b.t.Helper()
	b.do(chromedp.Navigate("http://" + s.address + "/#ticket=" + s.sessions.Ticket().Ticket))
	b.sees("document.querySelector('h1')?.textContent === 'Overview'")
	b.sees("document.getElementById('status').textContent === 'live'")
}

func needAxe(t *testing.T) {
	t.Helper()
	_, err := os.Stat(os.Getenv(axeEnv))
	testenv.NeedThat(t, "axe", err, "npm pack axe-core, unpack it, and set "+axeEnv+" to its axe.min.js")
}

// TestViews looks at every view, light and dark, wide and narrow.
func TestViews(t *testing.T) {
	needAxe(t)
	s := newSite(t, "hello", "other")
	s.measured()
	b := open(t)
	s.enter(b)
	for _, v := range []struct{ name, hash, title, says string }{
		{"overview", "#/", "Overview", "2 functions"},
		{"functions", "#/functions", "Functions", "dir:/hello"},
		{"function", "#/functions/hello", "hello", "line 2"},
		{"requests", "#/requests", "Requests", "restore"},
		{"snapshots", "#/snapshots", "Snapshots", "hello-1"},
		{"snapshot", "#/snapshots/hello-1", "Snapshot hello-1", "prefetched: the working set"},
		{"experiments", "#/experiments", "Experiments", "measured"},
		{"experiment", "#/experiments/measured", "measured", "Why these figures differ"},
		{"section", "#/experiments/measured/6", "measured", "Table fig8-policies"},
	} {
		b.view(v.hash, v.title)
		if v.name == "overview" {
			b.sees("document.querySelector('.tiles dd').textContent === '2'")
		} else {
			b.says(v.says)
		}
		for _, scheme := range []string{"light", "dark"} {
			b.scheme(scheme)
			for _, width := range []int64{1280, 390} {
				b.width(width)
				where := fmt.Sprintf("%s-%s-%d", v.name, scheme, width)
				var over int
				b.value("document.documentElement.scrollWidth - document.documentElement.clientWidth", &over)
				if over > 0 {
					t.Errorf("%s: %d pixels wider than the screen", where, over)
				}
				if v.name == "section" { // drawn anew for the width
					b.view("#/experiments", "Experiments")
					b.view(v.hash, v.title)
					b.sees(drawn)
				}
				if v.name == "snapshot" {
					b.sees("document.querySelector('canvas').width === 512") // pages wide
				}
				b.accessible(where)
				b.shoot(where)
			}
		}
	}
}

// drawn holds when there are figures, and each is drawn.
const drawn = "document.querySelectorAll('figure img').length > 0 && [...document.querySelectorAll('figure img')].every((i) => i.complete && i.naturalWidth > 200)"

// measured has skep make a report of samples, which the page shows.
func (s *site) measured() {
	s.t.Helper()
	s.results = results.Dir(s.t.TempDir())
	s.end()
	s.up()
	dir := filepath.Join(string(s.results), "measured")
	samples, err := os.ReadFile("../../experiment/report/testdata/samples.jsonl")
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "samples.jsonl"), samples, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command("go", "run", "./cmd/skep", "experiment", "report", dir)
	cmd.Dir = "../.." // the program's own module, not this one
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("making a report: %v\n%s", err, out)
	}
}

// TestHostileReport looks at a report that somebody has put what they could into: it is
// text, no script of it runs, and nothing is asked of anybody else.
func TestHostileReport(t *testing.T) {
	s := newSite(t, "hello")
	s.results = controltest.Results(t)
	s.end()
	s.up()
	b := open(t)
	s.enter(b)
	b.view("#/experiments", "Experiments")
	b.says("quick")
	b.view("#/experiments/quick", "quick")
	b.says("<script>throw 'ran'</script>.") // as text
	b.view("#/experiments/quick/1", "quick")
	b.says("Table fig8")
	b.sees("document.querySelector('figure img').naturalWidth === 20")
	b.says("none\" of \"quick\"") // a figure that is not there
	var markup int
	if b.value("document.querySelectorAll('#main script, #main img[src=x]').length", &markup); markup > 0 {
		t.Errorf("%d elements of the report's are the page's", markup)
	}
	b.shoot("hostile-report")
	b.view("#/experiments/quick/9", "quick")
	b.says("has no part 9")
	b.view("#/experiments/other", "other")
	b.says("skep experiment report DIRECTORY")
}

// TestReportByKeyboard goes from the list into a part of a report without a mouse.
func TestReportByKeyboard(t *testing.T) {
	s := newSite(t, "hello")
	s.results = controltest.Results(t)
	s.end()
	s.up()
	b := open(t)
	s.enter(b)
	b.view("#/experiments", "Experiments")
	b.says("quick")
	for _, next := range []string{"#/experiments/quick", "#/experiments/quick/1"} {
		for tabs := 0; ; tabs++ {
			var at string
			if b.value("document.activeElement.getAttribute('href') ?? ''", &at); at == next {
				break
			}
			if tabs > 20 {
				t.Fatalf("no way to %s: at %q", next, at)
			}
			b.do(chromedp.KeyEvent("\t"))
		}
		b.do(chromedp.KeyEvent("\r"))
		b.sees("location.hash === %q && document.activeElement.tagName === 'H1' && document.querySelector('#main .parts, #main table')", next)
	}
}

// TestColdStartIsSeen watches a start phase by phase, as the events of it come.
func TestColdStartIsSeen(t *testing.T) {
	s := newSite(t, "hello")
	b := open(t)
	s.enter(b)
	tell := func(state api.InstanceState) {
		s.node.Happened.Publish(api.Event{Kind: api.EventInstance, Function: "hello", Time: time.Now(), Instance: &api.Instance{ID: "i-9", Function: "hello", State: state, Start: api.StartRestore}})
	}
	tell(api.InstanceStarting)
	b.says("i-9")
	b.says("starting")
	for _, p := range []string{"spawn", "load", "clone"} {
		s.node.Happened.Publish(api.Event{Kind: api.EventPhase, Function: "hello", Phase: &api.StartPhase{Instance: "i-9", Name: p, Took: 50 * time.Millisecond}})
		b.sees("document.getElementById('main').textContent.includes('%s 50.0 ms')", p)
	}
	b.shoot("start")
	tell(api.InstanceIdle)
	b.says("idle")
	tell(api.InstanceBusy)
	b.says("busy")
	rec := record("r9", api.StartRestore, api.Phases{Process: 1234 * time.Millisecond})
	s.node.Happened.Publish(api.Event{Kind: api.EventInvocation, Function: "hello", Invocation: &rec})
	b.says("1234")
	row := "[...document.querySelectorAll('table')].find((t) => t.caption.textContent === 'Instances over time').textContent"
	b.sees("%s.includes('busy for ')", row)
	tell(api.InstanceIdle)
	b.sees("/starting for .*busy for .*idle for /.test(%s)", row)
	tell(api.InstanceStopped)
	b.says("ended")
	b.sees("/i-9ended.*then it ended/.test(%s)", row)
	b.shoot("timeline")
}

// TestDaemonComesBack ends the daemon under the page, and starts another.
func TestDaemonComesBack(t *testing.T) {
	s := newSite(t, "hello")
	b := open(t)
	s.enter(b)
	s.node.Happened.Publish(api.Event{Kind: api.EventFunctionRemoved, Function: "hello"}) // that the next has not had
	b.sees("document.querySelector('.tiles dd').textContent === '0'")
	s.end()
	b.sees("document.getElementById('status').textContent.includes('no daemon answers')")
	b.shoot("gone")
	s.node = controltest.New("hello", "new")
	s.up()
	b.sees("document.getElementById('status').textContent === 'live'")
	b.sees("document.querySelector('.tiles dd').textContent === '2'")

	// A log that is followed goes on, and what could not be read is read again.
	b.view("#/functions/hello", "hello")
	log := "document.querySelector('[aria-label=Log]').textContent"
	b.sees("%s.endsWith('line 2')", log)
	s.node.Happened.Publish(api.Event{Kind: api.EventFunctionRemoved, Function: "new"}) // that the next has not had
	b.view("#/functions", "Functions")
	b.says("1 of 1")
	b.view("#/functions/hello", "hello")
	b.sees("%s.endsWith('line 2')", log)
	s.end()
	b.sees("%s.includes('the log broke off')", log)
	s.node = controltest.New("hello")
	s.broken.Store(true)
	s.up()
	b.sees("document.getElementById('status').textContent.includes('disk I/O error')")
	s.broken.Store(false)
	b.sees("document.getElementById('status').textContent === 'live'")
	b.sees("%s.endsWith('line 2')", log)
	b.view("#/", "Overview")
	b.sees("document.querySelector('.tiles dd').textContent === '1'")
}

// TestAddresses goes where nothing is, and to a function before it is deployed.
func TestAddresses(t *testing.T) {
	s := newSite(t)
	b := open(t)
	s.enter(b)
	b.sees("document.querySelector('.tiles dd').textContent === '0'")
	b.view("#/constructor", "Overview")
	b.view("#/functions/%E0%A4%A", "%E0%A4%A")
	b.says("There is no function")
	b.view("#/functions", "Functions")
	b.says("no functions")
	b.view("#/functions/früh", "früh")
	b.view("#/functions/later", "later")
	b.says("There is no function later.")
	if _, err := s.node.Deploy(t.Context(), api.Function{Name: "later", Image: "dir:/later"}, func(api.DeployEvent) {}); err != nil {
		t.Fatal(err)
	}
	f, _ := s.node.Function("later")
	s.node.Happened.Publish(api.Event{Kind: api.EventFunction, Function: "later", Settings: &f})
	b.says("dir:/later")
	b.says("http://later.localhost:7080/") // which the event does not say
	b.press("Invoke")
	b.says("answered 200")
	s.node.Happened.Publish(api.Event{Kind: api.EventFunctionRemoved, Function: "later"})
	b.says("later has been removed.")
}

// TestChanges deploys, invokes, scales and removes from the page, by its forms.
func TestChanges(t *testing.T) {
	s := newSite(t, "hello")
	b := open(t)
	s.enter(b)
	b.view("#/functions", "Functions")
	b.press("Deploy a function")
	b.fill("name", "shop")
	b.fill("image", "localhost:5000/shop")
	b.press("Deploy")
	b.says("shop is deployed")
	if f, ok := s.node.Function("shop"); !ok || f.Image != "localhost:5000/shop" || f.MemoryMiB != 256 {
		t.Errorf("deployed %+v", f)
	}
	b.view("#/functions/hello", "hello")
	b.press("Invoke")
	b.says("answered 200")
	b.says("<b>GET of hello</b>") // as text
	b.fill("most", "3")
	b.press("Set")
	b.sees("[...document.querySelectorAll('[role=status]')].some((e) => e.textContent === 'set')")
	if f, _ := s.node.Function("hello"); f.MaxInstances != 3 {
		t.Errorf("set %+v", f)
	}
	b.fill("path", "/endless")
	b.press("Invoke")
	b.says("answered 200; this is the beginning")
	b.fill("keep", "soon")
	b.press("Set")
	b.says("want a number with a unit")
	b.view("#/functions", "Functions")
	b.press("Deploy a function")
	b.fill("name", "hello") // which is there
	b.fill("image", "localhost:5000/hello")
	b.press("Deploy")
	b.says("hello is deployed")
	if f, _ := s.node.Function("hello"); f.MaxInstances != 3 || f.Image != "localhost:5000/hello" {
		t.Errorf("deployed anew: %+v", f)
	}
	b.view("#/functions/hello", "hello")
	b.press("Make a snapshot")
	b.says("snapshot s1")
	b.press("Remove…")
	b.sees("document.querySelector('dialog').open")
	b.press("Cancel")
	b.sees("!document.querySelector('dialog').open")
	if _, ok := s.node.Function("hello"); !ok {
		t.Error("removed though it was cancelled")
	}
	b.press("Remove…")
	b.sees("document.querySelector('dialog').open")
	b.press("Remove")
	b.sees("location.hash === '#/functions'")
	if _, ok := s.node.Function("hello"); ok {
		t.Error("it is still there")
	}
}

// TestThousandFunctions: the list is there, found in, and none too slow to use.
func TestThousandFunctions(t *testing.T) {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("function-%03d", i))
	}
	s := newSite(t, names...)
	for i := range 2000 { // as many as are kept of so many
		s.node.SnapshotList = append(s.node.SnapshotList, api.Snapshot{ID: fmt.Sprintf("snapshot-%04d", i), Function: names[i/2], Created: time.Unix(int64(1e9-i), 0), Usable: true})
	}
	b := open(t)
	s.enter(b)
	b.view("#/snapshots", "Snapshots")
	b.press("Show all 2001")
	b.says("snapshot-1999")
	b.view("#/functions", "Functions")
	b.says("1000 of 1000")
	b.fill("filter", "-77")
	b.says("10 of 1000")
	b.fill("filter", "")
	b.press("Show all 1000")
	b.says("function-999")
	b.shoot("thousand")
}

// TestWithoutASession: a used link, and none, let nobody in; the control token does.
func TestWithoutASession(t *testing.T) {
	needAxe(t)
	s := newSite(t, "hello")
	b := open(t)
	ticket := s.sessions.Ticket().Ticket
	if _, ok := s.sessions.Redeem(ticket); !ok {
		t.Fatal("a new ticket is not good")
	}
	b.do(chromedp.Navigate("http://" + s.address + "/#ticket=" + ticket))
	b.says("has been used")
	b.accessible("locked")
	b.shoot("locked")
	b.fill("token", strings.Repeat("t", 32))
	b.press("Enter")
	b.sees("document.querySelector('h1')?.textContent === 'Overview'")
}

// TestKeyboard goes through the page without a mouse.
func TestKeyboard(t *testing.T) {
	s := newSite(t, "hello")
	b := open(t)
	s.enter(b)
	b.do(chromedp.KeyEvent("\t"))
	b.sees("document.activeElement.textContent === 'Skip to content'")
	b.do(chromedp.KeyEvent("\t"), chromedp.KeyEvent("\t"))
	b.sees("document.activeElement.textContent === 'Functions'")
	b.do(chromedp.KeyEvent("\r"))
	b.sees("document.activeElement.tagName === 'H1' && document.activeElement.textContent === 'Functions'")
}
