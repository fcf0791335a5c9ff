package scale

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/suggest"
)

// Policy decides for one function how many instances it has. It is pure: it sees
// its load and the time, and nothing else, so that what runs live is what is
// simulated. It is used by one goroutine at a time.
//
// Decide is asked whenever a request has arrived or left, an instance is ready or
// gone, and when the last decision's Again is over; never with an earlier now than
// before. now is the time since an epoch that is the caller's own. The caller keeps
// to a decision until the next.
type Policy interface {
	Decide(now time.Duration, l *Load) Decision
}

// Decision is what to do with a function's instances.
type Decision struct {
	// Start is how many to start now, beside those that are starting.
	Start int
	// Keep and Idle say which idle ones end: those that have been idle for Idle or
	// longer, the longest idle first, while there are more than Keep in all, those
	// that start and those that serve among them.
	Keep int
	Idle time.Duration
	// Again is when to ask anew though nothing has happened; 0: never.
	Again time.Duration
}

// Forever is the Idle of a decision by which no idle instance ends.
const Forever = time.Duration(math.MaxInt64)

// Ranker is a Policy that says, too, which idle instances end first when its node
// needs their memory: those of the lowest rank. Instances of functions whose policy
// does not rank go before all that are ranked, the longest idle first.
type Ranker interface {
	Policy
	// Rank is that of the function's instances. It only grows, until Evicted.
	Rank() float64
	// Evicted is called after one of the instances has ended for its memory.
	Evicted(left int)
}

// Steady is a Policy that decides the same as long as no request waits: it need not be
// asked when one arrives that is served at once, or is answered, unless instances have a
// Target that is less than their Concurrency.
type Steady interface {
	Policy
	Steady()
}

// Function is what a policy knows of a function from its settings.
type Function struct {
	KeepAlive time.Duration // its own setting, for the policies that have none
	MemoryMiB int           // of one instance
}

// Group is what the policies of functions that share the memory of one node share.
// The zero value is one to begin with. It may be used by many goroutines.
type Group struct {
	mu    sync.Mutex // guards clock
	clock float64    // of greedy-dual: the highest rank that was evicted
}

func (g *Group) time() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clock
}

func (g *Group) advance(to float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clock = max(g.clock, to)
}

// Kind is one sort of policy. Adding one is a file and a line in Kinds.
type Kind struct {
	Name    string
	Summary string
	Params  []Param
	// New makes a policy of such values of Params.
	New func(v Values, f Function, g *Group) Policy
}

// Param is a number that a kind of policy takes.
type Param struct {
	Name    string
	Help    string
	Default float64
	Min     float64
	Max     float64
	// Seconds: it is a duration, written as 90s or 10m.
	Seconds bool
}

// Values of a kind's parameters, by name.
type Values map[string]float64

func (v Values) duration(name string) time.Duration {
	return time.Duration(v[name] * float64(time.Second))
}

// Kinds are the policies that there are.
func Kinds() []Kind { return []Kind{fixed, none, kpa, hybrid, greedyDual, breakEven} }

// Default is the policy of functions that name none.
const Default = "fixed"

// Spec is a policy with its parameters, as it is written:
//
//	fixed
//	fixed:keep-alive=10m
//	kpa:stable-window=30s,target-utilization=0.8
type Spec struct {
	kind   Kind
	values Values
	text   string
}

// Parse reads a policy's spec. "" is that of Default.
func Parse(text string) (Spec, error) {
	if text == "" {
		text = Default
	}
	name, rest, given := strings.Cut(text, ":")
	kinds := Kinds()
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == name })
	if i < 0 {
		names := Names()
		return Spec{}, fmt.Errorf("scaling policy %q: there is none of that name%s (there are %s)", text, suggest.Text(name, names), strings.Join(names, ", "))
	}
	s := Spec{kinds[i], Values{}, text}
	for _, p := range s.kind.Params {
		s.values[p.Name] = p.Default
	}
	if !given {
		return s, nil
	}
	for _, pair := range strings.Split(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		if err := s.set(key, value); err != nil {
			return Spec{}, fmt.Errorf("scaling policy %q: %w", text, err)
		}
	}
	return s, nil
}

func (s *Spec) set(key, value string) error {
	var names []string
	for _, p := range s.kind.Params {
		names = append(names, p.Name)
		if p.Name != key {
			continue
		}
		v, err := p.parse(value)
		if err != nil {
			return err
		}
		s.values[key] = v
		return nil
	}
	if len(names) == 0 {
		return fmt.Errorf("%s takes no parameters", s.kind.Name)
	}
	return fmt.Errorf("%s has no parameter %q%s (it has %s)", s.kind.Name, key, suggest.Text(key, names), strings.Join(names, ", "))
}

func (p *Param) parse(value string) (float64, error) {
	v, err := strconv.ParseFloat(value, 64)
	if p.Seconds {
		var d time.Duration
		d, err = time.ParseDuration(value)
		v = d.Seconds()
	}
	if err != nil || !(v >= p.Min && v <= p.Max) {
		return 0, fmt.Errorf("%s is %q: want %s to %s", p.Name, value, p.format(p.Min), p.format(p.Max))
	}
	return v, nil
}

func (p *Param) format(v float64) string {
	if p.Seconds {
		return time.Duration(v * float64(time.Second)).String()
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// String is the spec as it was written.
func (s Spec) String() string { return s.text }

// Name of the policy.
func (s Spec) Name() string { return s.kind.Name }

// New makes the policy of one function, with what it shares with those of the
// functions beside it.
func (s Spec) New(f Function, g *Group) Policy { return s.kind.New(s.values, f, g) }

// Names lists the kinds of policies.
func Names() (names []string) {
	for _, k := range Kinds() {
		names = append(names, k.Name)
	}
	return names
}

// Describe is a text about all kinds with their parameters and defaults, for a
// command's help.
func Describe() string {
	var b strings.Builder
	for _, k := range Kinds() {
		fmt.Fprintf(&b, "  %-12s %s\n", k.Name, k.Summary)
		for _, p := range k.Params {
			def := p.format(p.Default)
			if p.Default < p.Min {
				def = "the function's own"
			}
			fmt.Fprintf(&b, "    %s: %s (%s)\n", p.Name, p.Help, def)
		}
	}
	return b.String()
}
