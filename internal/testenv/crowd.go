package testenv

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Crowd is processes that do the same thing at the same time, some of which are
// killed in the middle of it. Each is the test's binary, executed anew, which runs
// the calling test; that learns from Member that it is one of them.
type Crowd struct {
	Size   int           // processes at a time
	Kills  int           // processes that are killed; another comes in place of each
	Lines  int           // that it says before it is killed, at most; one at least
	Within time.Duration // after the last of them, at a random moment, it is killed
	Env    []string
}

const (
	crowdEnv = "SKEP_TEST_CROWD" // seed of the member's random numbers
	// SeedEnv names the environment variable with the seed of a crowd, to have a
	// run's random numbers again.
	SeedEnv = "SKEP_TEST_SEED"
)

// Member is one process of a crowd.
type Member struct {
	*rand.Rand
	out *os.File
}

// CrowdMember says whether this process is one of a crowd.
func CrowdMember() (*Member, bool) {
	seed, err := strconv.ParseUint(os.Getenv(crowdEnv), 10, 64)
	if err != nil {
		return nil, false
	}
	m := &Member{Rand: rand.New(rand.NewPCG(seed, 0)), out: os.NewFile(3, "crowd")}
	m.Say("begin")
	return m, true
}

// Say tells a line to the test that started the crowd. It is there when Say
// returns, whatever becomes of this process.
func (m *Member) Say(format string, args ...any) {
	if _, err := fmt.Fprintf(m.out, format+"\n", args...); err != nil {
		panic(err) // nobody listens: the test has ended
	}
}

// Run runs the crowd to its end and returns what each process said. One that
// fails without having been killed fails the test.
func (c Crowd) Run(t *testing.T) [][]string {
	t.Helper()
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv(SeedEnv), 10, 64); err == nil {
		seed = s
	}
	t.Logf("to have the same random numbers again: %s=%d", SeedEnv, seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var (
		mu    sync.Mutex // guards random and said
		said  [][]string
		kills atomic.Int64
		wg    sync.WaitGroup
	)
	kills.Store(int64(c.Kills))
	for range c.Size {
		wg.Go(func() {
			for killed := true; killed; {
				mu.Lock()
				member := random.Uint64()
				end := death{line: 1 + random.IntN(max(1, c.Lines)), after: time.Duration(random.Int64N(int64(c.Within) + 1))}
				mu.Unlock()
				if killed = kills.Add(-1) >= 0; !killed {
					end = death{}
				}
				lines, err := c.member(t, member, end)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				said = append(said, lines)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return said
}

// death is when a process is killed: so long after so many lines; never for none.
type death struct {
	line  int
	after time.Duration
}

// member runs one process.
func (c Crowd) member(t *testing.T, seed uint64, end death) (said []string, err error) {
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(append(os.Environ(), c.Env...), fmt.Sprintf("%s=%d", crowdEnv, seed))
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if said = append(said, lines.Text()); len(said) == end.line {
			defer time.AfterFunc(end.after, func() { _ = cmd.Process.Kill() }).Stop()
		}
	}
	err = cmd.Wait()
	if st := cmd.ProcessState.Sys().(syscall.WaitStatus); end.line > 0 && st.Signal() == syscall.SIGKILL {
		return said, nil
	}
	if err != nil {
		return said, fmt.Errorf("a process of the crowd: %w\n%s\nit said: %s", err, out.Bytes(), strings.Join(said, "\n"))
	}
	return said, nil
}
