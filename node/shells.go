package node

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// shells are VMM processes that wait for their function's next cold start: one
// for each of the functions that started last, up to a bound. Each has a network
// slot and a private directory, which the instance that takes it takes over.
type shells struct {
	n   *Node
	vmm vmm.Sheller // nil: there are none
	max int

	mu     sync.Mutex
	closed bool              // guarded by mu
	made   map[string]*shell // guarded by mu: by function; while it is being made its place is nil
}

// shell is one of them.
type shell struct {
	id   string
	dep  *deployment
	snap string
	used time.Time // when the function last started
	at   *place    // where it waits; nil while it is being made

	// stop is closed when it is decided what becomes of it, taken set before; gone
	// when the goroutine that watches it has let go of it.
	taken      bool
	stop, gone chan struct{}
}

func newShells(n *Node) *shells {
	s := &shells{n: n, max: n.cfg.Shells, made: map[string]*shell{}}
	if n.cfg.Shells > 0 {
		s.vmm, _ = n.deps.VMM.(vmm.Sheller)
		if s.vmm == nil {
			n.log.Warn("no processes are started ahead: the VMM cannot wait for its snapshot")
		}
	}
	return s
}

// take returns the place of the shell that was made for this snapshot, now the
// caller's; nil if there is none.
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
	sh := s.made[d.fn.Name]
	if sh == nil || sh.at == nil {
		return nil
	}
	sh.taken = sh.dep.alike(d) && sh.snap == snap && !ended(sh.at.shell.Done()) // else its watcher ends it
	s.drop(d.fn.Name)
	if !sh.taken {
		return nil
	}
	return sh
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// want has a shell made for the function's next start, unless there is one, in
// place of that of the function which started longest ago. It does not wait.
func (s *shells) want(d *deployment, snap string) {
	if s.vmm == nil || snap == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.made[d.fn.Name]
	switch {
	case s.closed, old != nil && old.at == nil, !s.n.serves(d):
		return
	case old != nil && old.dep.alike(d) && old.snap == snap:
		old.used = time.Now()
		return
	case old != nil:
		s.drop(d.fn.Name)
	case len(s.made) >= s.max && !s.dropOldest():
		return
	}
	sh := &shell{id: newID("i-"), dep: d, snap: snap, used: time.Now(), stop: make(chan struct{}), gone: make(chan struct{})}
	s.made[d.fn.Name] = sh
	if !s.n.spawn(func() { s.run(sh) }) {
		delete(s.made, d.fn.Name)
	}
}

// drop takes a function's shell out of the table, which ends it unless it is
// taken. The mutex is held.
func (s *shells) drop(function string) {
	close(s.made[function].stop)
	delete(s.made, function)
}

// dropOldest makes room; false when all are being made. The mutex is held.
func (s *shells) dropOldest() bool {
	oldest := ""
	for name, sh := range s.made {
		if sh.at != nil && (oldest == "" || sh.used.Before(s.made[oldest].used)) {
			oldest = name
		}
	}
	if oldest == "" {
		return false
	}
	s.drop(oldest)
	return true
}

// forget ends the shell of a function that was removed or deployed anew.
func (s *shells) forget(function string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh := s.made[function]; sh != nil {
		s.drop(function)
	}
}

// close ends all of them and makes no more; the node's Close waits for the rest.
func (s *shells) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for name := range s.made {
		s.drop(name)
	}
}

// run makes a shell and watches it until it is taken or has to end.
func (s *shells) run(sh *shell) {
	defer close(sh.gone)
	ctx, cancel := context.WithTimeout(s.n.ctx, 30*time.Second)
	defer cancel()
	at, err := s.make(ctx, sh)
	if err != nil {
		s.n.log.Warn("starting a VMM ahead", "function", sh.dep.fn.Name, "snapshot", sh.snap, "error", err)
		s.remove(sh)
		return
	}
	s.mu.Lock()
	sh.at = at
	s.mu.Unlock()
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

// remove takes a shell out of the table; false: it is not there any more.
func (s *shells) remove(sh *shell) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made[sh.dep.fn.Name] != sh {
		return false
	}
	delete(s.made, sh.dep.fn.Name)
	return true
}

// make starts the process. When it fails nothing is held.
func (s *shells) make(ctx context.Context, sh *shell) (_ *place, err error) {
	n, d := s.n, sh.dep
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
	at.shell, err = s.vmm.Shell(ctx, vmm.RestoreSpec{Config: n.machine(d, img.Disk), Host: n.host(at), State: filepath.Join(dir, snapshot.PartState)})
	if err != nil {
		n.leave(at)
		return nil, err
	}
	return at, nil
}

// serves says that the deployment is in force.
func (n *Node) serves(d *deployment) bool {
	p := n.pool(d.fn.Name)
	return p != nil && d.alike(p.current.Load())
}
