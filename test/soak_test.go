package test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
)

// Settings of TestSoak, from the environment.
const (
	soakEnv     = "SKEP_SOAK"      // how long it runs: 1h
	soakSeedEnv = "SKEP_SOAK_SEED" // what is asked and done follows from it; default 1
	soakLogEnv  = "SKEP_SOAK_LOG"  // file of every call and disturbance, as JSON lines
)

const (
	soakWorkers = 6
	soakThink   = 300 * time.Millisecond // a worker waits for up to so long between two calls
	soakPause   = 4 * time.Second        // and the hand that disturbs between two disturbances
	soakQuiet   = 3 * time.Minute        // between two looks at what is left when nothing is asked
)

// TestSoak runs a daemon under calls of every kind, well-behaved and odd ones,
// while functions are redeployed, changed and rolled back, snapshots and images removed, and daemon and
// VMMs killed. Every call is in a ledger, which must agree with the daemon's
// records: an answer that was acknowledged has exactly one, whatever was killed
// after; a 200 says what the function said; and what is left over on the host
// does not grow.
func TestSoak(t *testing.T) {
	s := newSoak(t)
	s.deploy()
	s.client = newSoakClient(s)
	defer s.client.close()
	defer s.report()
	defer s.stop()
	for n := range soakWorkers {
		s.workers.Go(func() { s.work(n) })
	}
	s.look("after deploying")
	quiet := time.Now().Add(-soakQuiet * 3 / 4) // the second look, with which the later ones are compared, comes soon
	for end := time.Now().Add(s.length); time.Now().Before(end) && s.ledger.faults() < maxSoakFaults; {
		s.disturbOnce()
		s.settle()
		if time.Since(quiet) > soakQuiet {
			s.look("quiet")
			quiet = time.Now()
		}
		time.Sleep(time.Duration(s.rand.Int64N(int64(soakPause))))
	}
	s.stop()
	s.look("at the end")
	s.d.down()
	s.audit()
}

// soak is one run of TestSoak.
type soak struct {
	t       *testing.T
	d       *daemon
	length  time.Duration
	seed    uint64
	rand    *rand.Rand // of the disturbances
	ledger  *ledger
	client  *soakClient
	ctx     context.Context
	cancel  context.CancelFunc
	workers sync.WaitGroup
	calls   sync.RWMutex // held for reading during a call: who has it for writing has quiet
	looks   []look
	removed []string // snapshots whose removal was acknowledged
	records []record // all, when the daemon has ended
	lost    int      // answered just before a SIGKILL, and not recorded

	history  *history                // of the function "changing"
	settings map[string]api.Function // as they were set
	random   sync.Map                // what was read from /urandom: never the same
}

func newSoak(t *testing.T) *soak {
	length := soakLength(t)
	seed := uint64(1)
	if v := os.Getenv(soakSeedEnv); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s=%s: want a number", soakSeedEnv, v)
		}
		seed = n
	}
	path := os.Getenv(soakLogEnv)
	if path == "" {
		path = filepath.Join(os.TempDir(), fmt.Sprintf("skep-soak-%d.jsonl", seed))
	}
	l, err := newLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Errorf("writing %s: %v", path, err)
		}
	})
	t.Logf("soaking for %v with seed %d; every call is in %s", length, seed, path)
	d := start(t, "keep_records = 10000000")
	d.longer = length + soakCallLimit
	d.watchOver()
	s := &soak{t: t, d: d, length: length, seed: seed, rand: rand.New(rand.NewPCG(seed, 1<<32)), ledger: l,
		history: newHistory(), settings: map[string]api.Function{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// soakLength says how long to run, or skips.
func soakLength(t *testing.T) time.Duration {
	v := os.Getenv(soakEnv)
	if v == "" {
		t.Skipf("takes as long as one wants; to run this test: %s=1h go test ./test -run TestSoak -v -timeout 90m", soakEnv)
	}
	length, err := time.ParseDuration(v)
	if err != nil || length < 10*time.Second || length > 24*time.Hour {
		t.Fatalf("%s=%s: want a duration from 10s to 24h, such as 1h", soakEnv, v)
	}
	if at, ok := t.Deadline(); ok && time.Until(at) < length+10*time.Minute {
		t.Fatalf("%s=%s does not fit in the tests' time limit: add -timeout %v", soakEnv, v, length+20*time.Minute)
	}
	return length
}

// soakFunctions are deployed before the calls begin: between them they start in
// every way.
var soakFunctions = map[string][]string{
	"warm":   {"--concurrency", "8", "--max-instances", "2", "--keep-alive", "5s"},
	"cold":   {"--keep-alive", "300ms", "--max-instances", "3"},
	"hook":   {"--clone-hook", "/clone", "--keep-alive", "1s", "--max-instances", "2"},
	"odd":    {"--max-instances", "2", "--keep-alive", "3s"},
	"after":  {"--snapshot-after", "3", "--keep-alive", "1s", "--max-instances", "2"},
	"boots":  {"--no-snapshot", "--keep-alive", "2s", "--max-instances", "1"},
	changing: {"--keep-alive", "2s", "--max-instances", "2", "--env", changingVar + "=0"},
	"brief":  {"--keep-alive", "1s", "--max-instances", "1"},
	"slow":   {"--timeout", "2s", "--keep-alive", "2s", "--max-instances", "2"},
	"crash":  {"--keep-alive", "2s", "--max-instances", "2"},
	"narrow": {"--queue-limit", "2", "--max-instances", "1", "--keep-alive", "2s"},
}

// soakEach is what all of them have: small guests, so that many fit, and more time
// than a busy host without KVM takes for what is here.
var soakEach = []string{"--memory-mib", "128", "--timeout", "10m", "--ready-timeout", "10m"}

func soakFlags(name string) []string { return slices.Concat(soakEach, soakFunctions[name]) }

func (s *soak) deploy() {
	for _, name := range slices.Sorted(maps.Keys(soakFunctions)) {
		s.d.hello(name, soakFlags(name)...)
	}
	if err := s.seeInForce(); err != nil {
		s.t.Fatal(err)
	}
}

// work makes one call after the other until the soak stops.
func (s *soak) work(n int) {
	r := rand.New(rand.NewPCG(s.seed, uint64(n)))
	for s.ctx.Err() == nil {
		k := pickKind(r)
		function := k.functions[r.IntN(len(k.functions))]
		s.calls.RLock()
		pause := time.Duration(r.Int64N(int64(soakThink)))
		if c := s.call(n, k, function, r); c.Excuse != "" {
			pause += time.Second // clients of a server that is away do not come faster
		}
		s.calls.RUnlock()
		select {
		case <-s.ctx.Done():
		case <-time.After(pause):
		}
	}
}

// call makes one call and writes down what came of it.
func (s *soak) call(worker int, k *kind, function string, r *rand.Rand) *call {
	c := s.ledger.begin(worker, k.name, function)
	// Not the soak's context: a call that has begun goes to its end.
	ctx, cancel := context.WithTimeout(context.Background(), soakCallLimit)
	defer cancel()
	err := k.do(ctx, s, c, r)
	s.ledger.end(c, err)
	return c
}

// soakCallLimit is beyond every limit that a function has.
const soakCallLimit = 15 * time.Minute

// stop lets the calls under way end and begins no more.
func (s *soak) stop() {
	s.cancel()
	s.workers.Wait()
}

// settle waits until every call that was answered until now has its record.
func (s *soak) settle() time.Time {
	now := time.Now()
	pending := s.ledger.unsettled(now)
	if len(pending) == 0 {
		return now
	}
	deadline := now.Add(testenv.Limit(s.t, 30*time.Second))
	for {
		recs, err := s.d.client.Invocations(s.d.ctx(30*time.Second), api.InvocationQuery{Since: s.ledger.oldest(pending), Limit: 10000})
		if err != nil {
			s.ledger.fault("reading records: %v", err)
			return now
		}
		left := s.ledger.settle(pending, recs)
		if len(left) == 0 {
			return now
		}
		if time.Now().After(deadline) {
			s.ledger.unrecorded(left)
			return now
		}
		time.Sleep(50 * time.Millisecond)
	}
}
