package test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The function "changing" has a variable that says by which change it came into
// force: by a deploy or a set with a number of its own, by a rollback again with
// that of an earlier one.
const changing, changingVar = "changing", "SOAK_REVISION"

// history is what the function "changing" was made to say, one change after the
// other. A change may be in force once it was tried, and is once it was
// acknowledged: what a call is told was said by one between the last that was
// acknowledged before it and the last that was tried until its end.
type history struct {
	mu           sync.Mutex // guards below
	said         []int
	acknowledged int         // the last that was, an index of said
	revisions    map[int]int // what each said that was in force for certain
}

func newHistory() *history { return &history{said: []int{0}, revisions: map[int]int{}} }

// next is a number that no change has said.
func (h *history) next() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.said)
}

// try notes a change that is about to be made, and returns which it is.
func (h *history) try(says int) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.said = append(h.said, says)
	return len(h.said) - 1
}

func (h *history) acknowledge(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acknowledged = n
}

// inForce is the last change that was acknowledged.
func (h *history) inForce() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acknowledged
}

// since is what may have been said since a change.
func (h *history) since(n int) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.said[n:])
}

// changeTo makes a change with the command line, and sees that it is in force.
func (s *soak) changeTo(says int, args ...string) error {
	n := s.history.try(says)
	if _, err := s.d.cli(args...); err != nil {
		return err
	}
	s.history.acknowledge(n)
	return s.seeInForce()
}

// seeInForce compares what the daemon says of the function with its history, and
// notes which revision it is.
func (s *soak) seeInForce() error {
	f, err := s.d.client.FunctionEnv(s.d.ctx(30*time.Second), changing)
	if err != nil {
		return err
	}
	may := s.history.since(s.history.inForce())
	says, err := strconv.Atoi(f.Env[changingVar])
	if err != nil || !slices.Contains(may, says) {
		return fmt.Errorf("revision %d of %s says %q, want one of %d", f.Revision, changing, f.Env[changingVar], may)
	}
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	if was, ok := s.history.revisions[f.Revision]; ok && was != says {
		return fmt.Errorf("revision %d of %s says %d, and said %d", f.Revision, changing, says, was)
	}
	s.history.revisions[f.Revision] = says
	return nil
}

func (s *soak) redeploy() { s.must("redeploy", s.tryRedeploy) }

func (s *soak) tryRedeploy() error {
	n := s.history.next()
	args := append([]string{"deploy", "functions/hello", "--name", changing}, soakFlags(changing)...)
	return s.changeTo(n, append(args, "--env", fmt.Sprintf("%s=%d", changingVar, n))...)
}

// set changes what is in the guests of a function, or what is looked up at each
// request, of one that is in use.
func (s *soak) set() {
	if s.rand.IntN(2) == 0 {
		s.must("set, guest", s.trySet)
		return
	}
	s.must("set, in force at once", s.setAtOnce)
}

func (s *soak) trySet() error {
	n := s.history.next()
	return s.changeTo(n, "set", changing, fmt.Sprintf("env.%s=%d", changingVar, n))
}

// setAtOnce changes settings that are no part of a guest: no call may feel it.
func (s *soak) setAtOnce() error {
	name := []string{"warm", "cold", "hook", "odd", "crash"}[s.rand.IntN(5)]
	v, err := s.d.client.Version(s.d.ctx(30 * time.Second))
	if err != nil {
		return err
	}
	changes := []string{
		fmt.Sprintf("keep_alive=%dms", 300+s.rand.IntN(3000)),
		fmt.Sprintf("timeout=%dm", 10+s.rand.IntN(5)),
		fmt.Sprintf("max_instances=%d", 2+s.rand.IntN(2)),
		"memory_policy=" + v.Policies[s.rand.IntN(len(v.Policies))],
	}
	before, err := s.d.client.FunctionEnv(s.d.ctx(30*time.Second), name)
	if err != nil {
		return err
	}
	if _, err = s.d.cli("set", name, changes[s.rand.IntN(len(changes))]); err != nil {
		return err
	}
	after, err := s.d.client.FunctionEnv(s.d.ctx(30*time.Second), name)
	if err != nil {
		return err
	}
	if after.Revision != before.Revision+1 {
		return fmt.Errorf("%s was at revision %d and is at %d", name, before.Revision, after.Revision)
	}
	s.settings[name] = after.Function
	return nil
}

func (s *soak) rollback() { s.must("rollback", s.tryRollback) }

// tryRollback goes back to a revision that is kept: mostly the one before, whose
// snapshot may be kept, too.
func (s *soak) tryRollback() error {
	kept, err := s.d.client.Revisions(s.d.ctx(30*time.Second), changing)
	if err != nil {
		return err
	}
	known := map[int]int{}
	s.history.mu.Lock()
	for _, r := range kept {
		if says, ok := s.history.revisions[r.Number]; ok && !r.Current {
			known[r.Number] = says
		}
	}
	s.history.mu.Unlock()
	if len(known) == 0 {
		return nil
	}
	numbers := slices.Sorted(maps.Keys(known))
	number := numbers[s.rand.IntN(len(numbers))]
	args := []string{"rollback", changing, strconv.Itoa(number)}
	if before := numbers[len(numbers)-1]; kept[0].Number == before+1 && s.rand.IntN(2) == 0 {
		number, args = before, args[:2]
	}
	return s.changeTo(known[number], args...)
}

// settingsStay sees that what was set is what the functions have.
func (s *soak) settingsStay() {
	if err := s.seeInForce(); err != nil {
		s.ledger.fault("after a restart: %v", err)
	}
	for name, want := range s.settings {
		f, err := s.d.client.FunctionEnv(s.d.ctx(30*time.Second), name)
		if err != nil || !reflect.DeepEqual(f.Function, want) {
			s.ledger.fault("after a restart: %s is %+v, want %+v (%v)", name, f.Function, want, err)
		}
	}
}
