package containerd

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/shim/shimtest"
)

// How often each of shim, VMM and containerd is killed: make test-containerd
// takes twenty. What is killed when follows from the seed.
const (
	killsEnv    = "SKEP_KILLS"      // default 3
	killSeedEnv = "SKEP_KILLS_SEED" // default 1
)

func number(t *testing.T, env string, def int) int {
	t.Helper()
	s := os.Getenv(env)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q: want a number", env, s)
	}
	return n
}

// life is a container from its creation to its removal, step by step, whatever
// becomes of the steps.
type life struct {
	c     *shimtest.Containerd
	id    string
	flags []string
	over  chan struct{}

	mu   sync.Mutex // guards what follows
	step string     // under way; "" when all is over
	runs bool       // its start was acknowledged, and nobody has asked for its end
	halt bool       // no further step is to begin
	hung []string   // steps that came to no end
	took map[string]time.Duration
}

// lead begins a life.
func lead(c *shimtest.Containerd, id string, flags []string) *life {
	l := &life{c: c, id: id, flags: flags, over: make(chan struct{}), step: "create", took: map[string]time.Duration{}}
	go l.lead()
	return l
}

func (l *life) lead() {
	defer close(l.over)
	for _, s := range []struct {
		name string
		args []string
	}{
		{"create", args("container", "create", vm, l.flags, shimtest.ProbeImage, l.id, "serve", "8080")},
		{"start", args("task", "start", "--detach", l.id)},
		{"exec", args("task", "exec", "--exec-id", "e", l.id, "/bin/sleep", "0.3")},
		{"stop", args("task", "kill", "--signal", "SIGKILL", l.id)},
		{"delete", args("task", "delete", "--force", l.id)}, // waits for its end
		{"remove", args("container", "delete", l.id)},
	} {
		if !l.enter(s.name) {
			return
		}
		began := time.Now()
		r := l.c.Try(s.args...)
		l.mu.Lock()
		l.took[s.name] = time.Since(began)
		if r.Err != nil {
			l.hung = append(l.hung, fmt.Sprintf("%s: %v", s.name, r.Err))
		}
		l.runs = l.runs || s.name == "start" && r.Code == 0 && r.Err == nil
		l.mu.Unlock()
	}
	l.enter("")
}

// enter notes the step that comes; false: it is not to.
func (l *life) enter(step string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.halt {
		return false
	}
	l.step = step
	l.runs = l.runs && step == "exec"
	return true
}

// stepNow says which step is under way; with halt no other begins.
func (l *life) stepNow(halt bool) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halt = l.halt || halt
	if l.step == "" {
		return "nothing, as all was over"
	}
	return l.step
}

// acknowledged says that it was said to run, and not asked to end.
func (l *life) acknowledged() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.runs
}

// purge removes a container, whatever state it is in.
func purge(t *testing.T, c *shimtest.Containerd, id string) {
	t.Helper()
	var said []string
	for end := time.Now().Add(c.Limit(30 * time.Second)); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		said = nil
		for _, a := range [][]string{{"task", "kill", "--signal", "SIGKILL", id}, {"task", "delete", id}, {"container", "delete", id}} {
			said = append(said, c.Try(a...).Stderr)
		}
		if c.Try("container", "info", id).Code != 0 && c.Status(id) == "" {
			return
		}
	}
	t.Fatalf("container %s cannot be removed: %q\n%s", id, said, c.Log())
}

// serves says that a container's server answers, and has memory to do it with that
// it has never touched: one more MiB each time.
func serves(t *testing.T, c *shimtest.Containerd, id string, vmm int, when string) {
	t.Helper()
	r := eventually(c, func() shimtest.Result { return c.InsideOf(vmm, "get", "http://127.0.0.1:8080/touch/4") })
	if r != "touched 4" {
		t.Errorf("%s: container %s answers %q\n%s", when, id, r, c.Log())
	}
}

// victims are what is killed, and how it is found.
var victims = []struct {
	name string
	pid  func(c *shimtest.Containerd, id string) int
}{
	{"shim", (*shimtest.Containerd).Shim},
	{"VMM", (*shimtest.Containerd).VMM},
	{"containerd", nil},
}

// Whoever of shim, VMM and containerd is killed, and when: nothing hangs, what was
// said to run goes on, unless it is it that was killed, and nothing is left.
func TestKills(t *testing.T) { eachVM(t, killAll) }

func killAll(t *testing.T, c *shimtest.Containerd) {
	k := newKills(t, c)
	c.Starts("other", args("run", "-d", vm, shimtest.ProbeImage, "other", "serve", "8080")...)
	other := c.VMM("other")
	serves(t, c, "other", other, "at first")
	// How long the steps take that nobody ends, with a snapshot to be made and without.
	long := k.measure("long", fresh())
	short := k.measure("short", nil)
	making := fresh()
	k.before, k.dirs = c.Left(), used(t)
	for i := range k.times {
		for j, v := range victims {
			l := (*life)(nil)
			id := fmt.Sprintf("killed-%s-%d", strings.ToLower(v.name), i)
			if i == 0 {
				l = lead(c, id, making)
				k.await(l, "start", long)
			} else {
				l = lead(c, id, nil)
				k.await(l, moments[((i-1)*len(victims)+j)%len(moments)], short)
			}
			when := k.strike(l, v.name, v.pid)
			vmm := c.VMM(id)
			if v.pid == nil {
				serves(t, c, "other", other, when)
				<-l.over
				if l.acknowledged() {
					serves(t, c, id, vmm, when)
				}
				c.Up()
				if l.acknowledged() {
					serves(t, c, id, vmm, when)
					c.Must("task", "exec", "--exec-id", "again", id, "/bin/true")
				}
			}
			<-l.over
			serves(t, c, "other", other, when)
			k.end(l, when)
		}
	}
	k.measure("last", making) // what was begun and not finished is in nobody's way
	k.report()
	end(c, "other")
	c.Clean()
	unlocked(t)
}

// moments are the steps that something is killed in, in turns: a start has the most
// parts.
var moments = []string{"start", "exec", "start", "stop", "delete", "start", "create"}

// sizes of guests that no container has had yet.
var size atomic.Int32

// fresh are the flags of a container for which a snapshot has to be made.
func fresh() []string {
	return []string{"--annotation", fmt.Sprintf("skep.dev/memory=%dMi", 256+64*size.Add(1))}
}

// kills is what several kills of one containerd have in common.
type kills struct {
	t      *testing.T
	c      *shimtest.Containerd
	times  int
	seed   int
	rand   *rand.Rand
	before []string       // what there is of containers that are not killed
	dirs   []string       // the same, below the data directory
	met    map[string]int // what was killed during which step, and how often
}

func newKills(t *testing.T, c *shimtest.Containerd) *kills {
	k := &kills{t: t, c: c, times: number(t, killsEnv, 3), seed: number(t, killSeedEnv, 1), met: map[string]int{}}
	k.rand = rand.New(rand.NewPCG(uint64(k.seed), 0))
	return k
}

func (k *kills) report() {
	for _, what := range slices.Sorted(maps.Keys(k.met)) {
		k.t.Logf("seed %d: killed %s: %d times", k.seed, what, k.met[what])
	}
}

// measure leads a life that nobody ends, and says how long its steps took.
func (k *kills) measure(id string, flags []string) map[string]time.Duration {
	k.t.Helper()
	l := lead(k.c, id, flags)
	<-l.over
	if len(l.hung) > 0 || k.c.Try("container", "info", id).Code == 0 {
		k.t.Fatalf("a container that nobody killed has not come to its end: %v\n%s", l.hung, k.c.Log())
	}
	return l.took
}

// await returns at some time during a step that takes about so long.
func (k *kills) await(l *life, step string, took map[string]time.Duration) {
	for l.stepNow(false) != step {
		select {
		case <-l.over:
			return
		case <-time.After(time.Millisecond):
		}
	}
	select {
	case <-l.over:
	case <-time.After(time.Duration(k.rand.Float64() * float64(took[step]))):
	}
}

// strike kills something of a container as soon as that is there; without a way to
// find it, containerd. It says when that was.
func (k *kills) strike(l *life, victim string, find func(*shimtest.Containerd, string) int) (when string) {
	k.t.Helper()
	step := ""
	for pid := 0; ; time.Sleep(time.Millisecond) {
		if step = l.stepNow(find == nil); step == "start" && k.c.VMM(l.id) > 0 {
			step = "start, with a VMM there"
		}
		if find == nil {
			k.c.Down()
			break
		}
		if pid = find(k.c, l.id); pid > 0 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				k.t.Fatal(err)
			}
			break
		}
		select {
		case <-l.over:
		default:
			continue
		}
		break
	}
	k.met[victim+" during "+step]++
	when = fmt.Sprintf("%s was killed for %s, during %s", victim, l.id, step)
	k.t.Log(when)
	return when
}

// end removes a container of which something was killed: then nothing is left of it.
func (k *kills) end(l *life, when string) {
	k.t.Helper()
	if len(l.hung) > 0 {
		k.t.Errorf("%s: there was no answer to %q\n%s", when, l.hung, k.c.Log())
	}
	purge(k.t, k.c, l.id)
	// Of a shim that dies before containerd knows it, containerd does not tell: its
	// socket goes with the next.
	if r := once(k.c, "next", "true"); r.Code != 0 {
		k.t.Errorf("%s: the next container ends with %d: %s", when, r.Code, r.Stderr)
	}
	k.c.CleanBut(k.before)
	k.clean(when, l.id)
	if k.t.Failed() {
		k.t.Fatalf("with seed %d: %s", k.seed, when)
	}
}

// clean fails the test if something is left of containers below the data directory, or
// a cgroup.
func (k *kills) clean(when string, ids ...string) {
	k.t.Helper()
	for _, id := range ids {
		if left := cgroupsLeft(id); len(left) > 0 {
			k.t.Errorf("%s: left: %v", when, left)
		}
	}
	if now := used(k.t); !slices.Equal(now, k.dirs) {
		k.t.Errorf("%s: the directories of containers are %v, want %v", when, now, k.dirs)
	}
}

// All processes end at once, as when the host does: the next containerd, and the next
// shim, clear away what is left on disk.
func TestReboot(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		k := newKills(t, c)
		long := k.measure("long", fresh())
		making := fresh()
		for i := range k.times {
			ids := []string{fmt.Sprint("served-", i), fmt.Sprint("begun-", i)}
			c.Starts(ids[0], args("run", "-d", vm, shimtest.ProbeImage, ids[0], "serve", "8080")...)
			l := lead(c, ids[1], making)
			if i%3 == 2 {
				k.await(l, moments[i%len(moments)], long)
			} else {
				k.await(l, "start", long)
			}
			step := l.stepNow(true)
			c.Down()
			c.Reboot(i%2 == 1)
			if i%2 == 1 { // nor has such a host cgroups in which nobody was any more
				for _, id := range ids {
					for _, dir := range cgroupsLeft(id) {
						if err := os.Remove(dir); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			when := fmt.Sprintf("everything was killed while %s was in %s", l.id, step)
			k.met["everything during "+step]++
			t.Log(when)
			<-l.over
			c.Up()
			for _, id := range ids {
				purge(t, c, id)
			}
			// What containerd has forgotten goes with the next shim.
			if r := once(c, "next", "true"); r.Code != 0 {
				t.Errorf("%s: the next container ends with %d: %s", when, r.Code, r.Stderr)
			}
			c.CleanBut(k.before)
			k.clean(when, ids...)
			if t.Failed() {
				t.Fatalf("with seed %d: %s\n%s", k.seed, when, c.Log())
			}
		}
		k.measure("last", making)
		k.report()
		c.Clean()
		unlocked(t)
	})
}

// used lists what belongs to containers that there are.
func used(t *testing.T) (names []string) {
	t.Helper()
	for _, sub := range []string{"run", "mem", "claims"} {
		entries, _ := os.ReadDir(filepath.Join(shimtest.DataDir(t), sub))
		for _, e := range entries {
			names = append(names, filepath.Join(sub, e.Name()))
		}
	}
	return names
}

// unlocked says that nobody uses a root disk or a snapshot any more, and that
// nothing half made is among them.
func unlocked(t *testing.T) {
	t.Helper()
	for _, sub := range []string{"images", "snapshots"} {
		dir := filepath.Join(shimtest.DataDir(t), sub)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !e.IsDir() || e.Name()[0] == '.' {
				t.Errorf("%s/%s is left", sub, e.Name())
				continue
			}
			lock, err := filelock.Own(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Errorf("%s/%s is in use: %v", sub, e.Name(), err)
			}
			_ = lock.Release()
		}
	}
}
