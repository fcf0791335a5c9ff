package node

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// shells are VMM processes that wait for cold starts: at least one for each of the functions that
// were deployed or started last, and as many for each as its starts have wanted at
// once lately, up to a bound over all. Each has a network slot and a private
// directory, which the instance that takes it takes over.
type shells struct {
	n      *Node
	vmm    vmm.Sheller // nil: there are none
	max    int
	making *semaphore.Weighted // one at a time: starts need the processors more

	mu     sync.Mutex
	closed bool              // guarded by mu
	of     map[string]*ahead // guarded by mu, with what is in it: by function
	later  *time.Timer       // guarded by mu: tidies; nil: not set
}

// ahead is what waits for one function: for starts of that deployment from that
// snapshot.
type ahead struct {
	dep    *deployment
	snap   string
	used   time.Time // when the function was last deployed or started
	demand scale.Ahead
	list   []*shell // those that wait, and those that are being made
}

// shell is one process.
type shell struct {
	id    string
	of    *ahead
	dep   *deployment // that it is made for, or one alike: of's may change meanwhile
	snap  string
	begun bool   // its turn to be made has come
	at    *place // where it waits; nil while it is being made

	// stop is closed when it is decided what becomes of it, taken set before; gone
	// when the goroutine that watches it has let go of it.
	taken      bool
	stop, gone chan struct{}
}

func newShells(n *Node) *shells {
	s := &shells{n: n, max: n.cfg.Shells, making: semaphore.NewWeighted(1), of: map[string]*ahead{}}
	if n.cfg.Shells > 0 {
		s.vmm, _ = n.deps.VMM.(vmm.Sheller)
		if s.vmm == nil {
			n.log.Warn("no processes are started ahead: the VMM cannot wait for its snapshot")
		}
	}
	return s
}

// take returns the place of a shell that was made for this snapshot, now the
// caller's; nil if there is none. It waits for one whose making has begun, which takes no longer
// than to begin with another.
func (s *shells) take(d *deployment, snap string) *place {
	sh := s.find(d, snap)
	if sh == nil {
		return nil
	}
	<-sh.gone // its watcher has let go of it; it may need the mutex for that
	return sh.at
}

func (s *shells) find(d *deployment, snap string) *shell {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.of[d.fn.Name]
	if a == nil {
		return nil
	}
	if !a.serves(d, snap) {
		s.dropAll(d.fn.Name)
		return nil
	}
	for sh := a.waiting(); sh != nil; sh = a.waiting() {
		sh.taken = !ended(sh.at.shell.Done()) // else its watcher ends it
		a.drop(sh)
		if sh.taken {
			return sh
		}
	}
	if i := slices.IndexFunc(a.list, func(sh *shell) bool { return sh.begun }); i >= 0 {
		sh := a.list[i]
		sh.taken = true
		a.drop(sh)
		return sh
	}
	a.demand.Missed(time.Now())
	return nil
}

func (a *ahead) serves(d *deployment, snap string) bool { return a.dep.alike(d) && a.snap == snap }

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// want has shells made for the function's next starts, as many as there should be.
// It does not wait.
func (s *shells) want(d *deployment, snap string) {
	if s.vmm == nil || snap == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := d.fn.Name
	if s.closed || !s.n.serves(d) {
		return
	}
	a := s.of[name]
	if a != nil && !a.serves(d, snap) {
		demand := a.demand
		s.dropAll(name)
		a = &ahead{demand: demand}
	} else if a == nil {
		a = &ahead{}
	}
	a.dep, a.snap, a.used = d, snap, time.Now()
	s.of[name] = a
	for len(a.list) < a.demand.Wanted(a.used, s.max) && s.n.budget.roomToWait(s.count()+1) && s.room(a) {
		sh := &shell{id: newID("i-"), of: a, dep: d, snap: snap, stop: make(chan struct{}), gone: make(chan struct{})}
		if !s.n.spawn(func() { s.run(sh) }) {
			return
		}
		a.list = append(a.list, sh)
	}
	s.tidy()
}

// wantNewest is want for the newest snapshot that the deployment can start from, and may wait.
func (s *shells) wantNewest(ctx context.Context, d *deployment) {
	if s.vmm == nil || memory.Mapped(s.n.policyOf(d)) {
		return
	}
	if snap, _ := s.n.usable(ctx, d); snap != nil {
		id := snap.Manifest.ID
		snap.Release()
		s.want(d, id)
	}
}

// wantLast is wantNewest for the functions that started last, before this node was opened.
func (s *shells) wantLast() {
	if s.vmm == nil {
		return
	}
	names, err := s.n.db.lastFunctions(s.n.ctx, s.max)
	if err != nil {
		s.n.log.Warn("starting VMMs ahead", "error", err)
		return
	}
	for _, name := range slices.Backward(names) { // the last of them is the last in use
		if p := s.n.pool(name); p != nil {
			if d := p.current.Load(); d != nil {
				s.wantNewest(s.n.ctx, d)
			}
		}
	}
}

func (s *shells) count() (n int) {
	for _, a := range s.of {
		n += len(a.list)
	}
	return n
}

// room says whether there may be another for a, and makes room for it: each function's
// first goes before others' further ones, and before the first of that which was
// used longest ago. The mutex is held, as in what follows.
func (s *shells) room(a *ahead) bool {
	if s.count() < s.max {
		return true
	}
	var victim *ahead
	for _, o := range s.of {
		further := len(o.list) > 1
		switch {
		case o == a, o.waiting() == nil, !further && len(a.list) > 0, further && len(o.list) <= len(a.list)+1:
		case victim == nil, further && len(victim.list) == 1, further == (len(victim.list) > 1) && o.used.Before(victim.used):
			victim = o
		}
	}
	if victim == nil {
		return false
	}
	victim.drop(victim.waiting())
	return true
}

// waiting is one that is not being made any more; nil: there is none.
func (a *ahead) waiting() *shell {
	for _, sh := range a.list {
		if sh.at != nil {
			return sh
		}
	}
	return nil
}

// drop takes a shell out of the list, which ends it unless it is taken.
func (a *ahead) drop(sh *shell) {
	a.list = slices.DeleteFunc(a.list, func(o *shell) bool { return o == sh })
	close(sh.stop)
}

func (s *shells) dropAll(function string) {
	a := s.of[function]
	if a == nil {
		return
	}
	for _, sh := range slices.Clone(a.list) {
		a.drop(sh)
	}
	delete(s.of, function)
}

// tidy ends what is wanted no longer, and forgets functions that nothing waits for. It comes
// again while there is more than one for a function.
func (s *shells) tidy() {
	now, more := time.Now(), false
	for name, a := range s.of {
		more = more || len(a.list) > 1
		for over := len(a.list) - a.demand.Wanted(now, s.max); over > 0 && a.waiting() != nil; over-- {
			a.drop(a.waiting())
		}
		if len(a.list) == 0 && now.Sub(a.used) > forgetAhead {
			delete(s.of, name)
		}
	}
	if more && s.later == nil && !s.closed {
		s.later = time.AfterFunc(tidyEvery, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.later = nil
			s.tidy()
		})
	}
}

const tidyEvery = time.Minute

// forgetAhead is for how long it is known how many a function wants that has none.
const forgetAhead = 10 * time.Minute

// forget ends the shells of a function that was removed or deployed anew.
func (s *shells) forget(function string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropAll(function)
}

// close ends all of them and makes no more; the node's Close waits for the rest.
func (s *shells) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.later != nil {
		s.later.Stop()
	}
	for name := range s.of {
		s.dropAll(name)
	}
}

// run makes a shell and watches it until it is taken or has to end.
func (s *shells) run(sh *shell) {
	defer close(sh.gone)
	at, err := s.make(sh)
	if err != nil {
		s.n.log.Warn("starting a VMM ahead", "function", sh.dep.fn.Name, "snapshot", sh.snap, "error", err)
	}
	if at == nil {
		s.remove(sh)
		return
	}
	select {
	case <-sh.stop:
	case <-at.shell.Done():
		s.n.log.Warn("a VMM that was started ahead ended", "function", sh.dep.fn.Name)
	case <-s.n.ctx.Done():
	}
	if !s.remove(sh) {
		<-sh.stop // what becomes of it was decided elsewhere
		if sh.taken {
			return
		}
	}
	s.n.leave(at)
}

// make makes one when its turn has come; nil, without an error, if it is not wanted any more.
func (s *shells) make(sh *shell) (*place, error) {
	if s.making.Acquire(s.n.ctx, 1) != nil {
		return nil, nil // the node closes
	}
	defer s.making.Release(1)
	s.mu.Lock()
	sh.begun = !ended(sh.stop)
	s.mu.Unlock()
	if !sh.begun {
		return nil, nil
	}
	at, err := s.begin(sh)
	if at == nil {
		return nil, err
	}
	s.mu.Lock()
	sh.at = at
	s.mu.Unlock()
	s.settle(sh, at)
	return at, nil
}

// remove takes a shell out of its list; false: it is not there any more.
func (s *shells) remove(sh *shell) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(sh.of.list)
	sh.of.list = slices.DeleteFunc(sh.of.list, func(o *shell) bool { return o == sh })
	return len(sh.of.list) < n
}

// begin starts the process. When it fails nothing is held.
func (s *shells) begin(sh *shell) (_ *place, err error) {
	n, d := s.n, sh.dep
	ctx, cancel := context.WithTimeout(n.ctx, 30*time.Second)
	defer cancel()
	img, err := n.images.Get(d.image.Digest)
	if err != nil {
		return nil, err
	}
	dir, err := n.snaps.Dir(sh.snap)
	if err != nil {
		return nil, err
	}
	at, err := n.take(ctx, sh.id, d.fn.Egress)
	if err != nil {
		return nil, err
	}
	spec := vmm.RestoreSpec{Config: n.machine(d, img.Disk), Host: n.host(at), State: filepath.Join(dir, snapshot.PartState)}
	if n.deps.Ahead != nil {
		src := memory.Source{SnapshotID: sh.snap, Path: filepath.Join(dir, snapshot.PartMemory), Size: int64(d.fn.MemoryMiB) << 20}
		if at.ahead, err = n.deps.Ahead(n.ctx, src); err != nil {
			n.leave(at)
			return nil, err
		}
		spec.Memory.Attach = at.ahead.Attach
		guarded, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go func() {
			select {
			case <-at.ahead.Failed():
				cancel(at.ahead.Err())
			case <-guarded.Done():
			}
		}()
		ctx = guarded
	}
	if at.shell, err = s.vmm.Shell(ctx, spec); err == nil {
		err = s.wake(ctx, sh, at)
	}
	if err != nil {
		n.leave(at)
		return nil, cause.Because(ctx, err)
	}
	return at, nil
}

// wake begins to wake the guest of a process that has loaded device state, unless a start waits for it, which
// does so itself. When it fails nothing waits at the place any more.
func (s *shells) wake(ctx context.Context, sh *shell, at *place) error {
	if s.n.deps.Wake == nil || !at.ahead.Attached() || ended(sh.stop) {
		return nil
	}
	sleeps := at.shell
	at.shell = nil
	woken, err := s.n.starter.Wake(ctx, sleeps, microvm.WakeSpec{
		Dial: func(ctx context.Context, port int) (net.Conn, error) { return s.n.deps.Dial(ctx, at.slot, port) },
		Port: sh.dep.fn.Port, Memory: at.ahead,
	})
	if err == nil {
		at.shell = woken
	}
	return err
}

// settle returns when the guest of a process has been woken, or what becomes of it is decided.
func (s *shells) settle(sh *shell, at *place) {
	woken, ok := at.shell.(*microvm.Awake)
	if !ok {
		return
	}
	select {
	case <-woken.Settled():
		if err := woken.Err(); err != nil {
			s.n.log.Warn("waking a guest ahead", "function", sh.dep.fn.Name, "snapshot", sh.snap, "error", err)
		}
	case <-sh.stop:
	case <-at.shell.Done():
	case <-s.n.ctx.Done():
	}
}

// serves says that the deployment is in force.
func (n *Node) serves(d *deployment) bool {
	p := n.pool(d.fn.Name)
	return p != nil && d.alike(p.current.Load())
}
