package test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
)

// maxSoakFaults ends a soak: more of the same tells nothing new.
const maxSoakFaults = 50

// Outcomes of a call.
const (
	answered  = "answered"  // a complete answer, and the right one
	refused   = "refused"   // the error that is right for such a call
	left      = "left"      // the client did not wait for an answer, or spoiled its own request
	overload  = "overload"  // 503, with Retry-After: the queue was full
	disturbed = "disturbed" // no answer, while its daemon or its VMM was killed
	wrong     = "wrong"     // what must not be
)

// call is one line of the ledger.
type call struct {
	N        int       `json:"n"`
	Worker   int       `json:"worker"`
	Kind     string    `json:"kind"`
	Function string    `json:"function"`
	Want     string    `json:"want,omitempty"`   // the start kind that was asked for
	Policy   string    `json:"policy,omitempty"` // the memory policy that was asked for
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended"`
	Sent     bool      `json:"sent"` // its header went out whole, and names a function
	Status   int       `json:"status,omitempty"`
	Start    string    `json:"start,omitempty"`
	ID       string    `json:"id,omitempty"` // of the record, as the answer says
	Complete bool      `json:"complete"`     // the answer came to its end
	Outcome  string    `json:"outcome"`
	Error    string    `json:"error,omitempty"`
	Excuse   string    `json:"excuse,omitempty"` // the disturbance that it met

	settled bool
}

// disturbance is something done to the daemon for which some calls may fail.
type disturbance struct {
	Event    string    `json:"event"`
	Function string    `json:"function,omitempty"` // whose calls may fail; "": any
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended,omitzero"` // zero: it goes on
	Settled  time.Time `json:"settled,omitzero"`
	Excuses  bool      `json:"excuses"` // calls may fail by it
	Hard     bool      `json:"hard"`    // SIGKILL of the daemon: what it had not yet written is lost
	Error    string    `json:"error,omitempty"`
}

func (b *disturbance) met(c *call) bool {
	return b.Excuses && (b.Function == "" || b.Function == c.Function) &&
		!b.Began.After(c.Ended) && (b.Ended.IsZero() || !c.Began.After(b.Ended))
}

// ledger is what the clients know.
type ledger struct {
	began time.Time
	file  *os.File

	mu           sync.Mutex
	out          *bufio.Writer
	err          error // of the first write that failed
	calls        []*call
	disturbances []*disturbance
	wrongs       []string
}

func newLedger(path string) (*ledger, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &ledger{began: time.Now(), file: f, out: bufio.NewWriter(f)}, nil
}

func (l *ledger) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.out.Flush(), l.file.Close())
}

func (l *ledger) begin(worker int, kind, function string) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &call{N: len(l.calls), Worker: worker, Kind: kind, Function: function, Began: time.Now()}
	l.calls = append(l.calls, c)
	return c
}

// falseSuccess is an answer that says 200, came to its end, and is not what the
// function says. Nothing excuses it.
type falseSuccess struct{ what string }

func (f *falseSuccess) Error() string { return "false success: " + f.what }

// end judges a call. Its kind has set the outcome if err is nil.
func (l *ledger) end(c *call, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.Ended = time.Now()
	for _, b := range l.disturbances {
		if b.met(c) {
			c.Excuse = b.Event
			break
		}
	}
	var lie *falseSuccess
	if err != nil {
		c.Error = err.Error()
		switch {
		case errors.As(err, &lie):
			c.Outcome = wrong
		case c.Excuse != "":
			c.Outcome = disturbed
		case errors.Is(err, errOverload):
			c.Outcome = overload
		default:
			c.Outcome = wrong
		}
	}
	if c.Outcome == wrong {
		l.wrongs = append(l.wrongs, fmt.Sprintf("%+v", *c))
	}
	l.write(c)
}

var errOverload = errors.New("503: the queue is full")

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	l.wrongs = append(l.wrongs, text)
	l.write(map[string]string{"fault": text})
}

func (l *ledger) faults() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.wrongs)
}

// disturb notes a disturbance before it is made.
func (l *ledger) disturb(b disturbance) *disturbance {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.Began = time.Now()
	l.disturbances = append(l.disturbances, &b)
	return &b
}

// over notes that a disturbance cannot be felt any more.
func (l *ledger) over(b *disturbance, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.Ended = time.Now()
	if err != nil {
		b.Error = err.Error()
	}
	l.write(b)
}

// write needs the lock.
func (l *ledger) write(v any) {
	if err := json.NewEncoder(l.out).Encode(v); err != nil && l.err == nil {
		l.err = err
	}
}

// unsettled are the calls answered before at whose records were not seen yet,
// by their id.
func (l *ledger) unsettled(at time.Time) map[string]*call {
	l.mu.Lock()
	defer l.mu.Unlock()
	pending := map[string]*call{}
	for _, c := range l.calls {
		if c.Ended.IsZero() {
			continue // still its worker's
		}
		if c.ID != "" && !c.settled && c.Ended.Before(at) && !l.nearKill(c) {
			pending[c.ID] = c
		}
	}
	return pending
}

// nearKill says that a call was under way, or answered a moment before, when the
// daemon was killed: its record may not have been written. It needs the lock.
func (l *ledger) nearKill(c *call) bool {
	for _, b := range l.disturbances {
		if b.Hard && c.Ended.After(b.Settled) && (b.Ended.IsZero() || c.Began.Before(b.Ended)) {
			return true
		}
	}
	return false
}

// oldest is a moment before the first of the calls began.
func (l *ledger) oldest(calls map[string]*call) time.Time {
	at := time.Now()
	for _, c := range calls {
		if c.Began.Before(at) {
			at = c.Began
		}
	}
	return at.Add(-time.Second)
}

// settle marks the calls that have a record and returns those that have none.
func (l *ledger) settle(pending map[string]*call, recs []api.Invocation) []*call {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range recs {
		if c := pending[r.ID]; c != nil {
			c.settled = true
			delete(pending, r.ID)
		}
	}
	var none []*call
	for _, c := range pending {
		none = append(none, c)
	}
	return none
}

// unrecorded tells of calls that have no record, once.
func (l *ledger) unrecorded(calls []*call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range calls {
		c.settled = true
		c.Outcome = wrong
		text := fmt.Sprintf("answered and not recorded after 30 s: %+v", *c)
		l.wrongs = append(l.wrongs, text)
		l.write(map[string]string{"fault": text})
	}
}
