package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// deed is something that an operator, or fate, does to a daemon in use.
type deed struct {
	name   string
	weight int
	do     func(s *soak)
}

var soakDeeds = []deed{
	{"redeploy", 5, (*soak).redeploy},
	{"set", 5, (*soak).set},
	{"rollback", 4, (*soak).rollback},
	{"snapshot rm", 3, (*soak).removeSnapshot},
	{"snapshot create", 4, (*soak).createSnapshot},
	{"snapshot verify", 2, (*soak).verifySnapshot},
	{"image prune", 2, (*soak).prune},
	{"rm and deploy", 2, (*soak).removeAndDeploy},
	{"kill VMM", 6, (*soak).killVMM},
	{"kill daemon", 3, func(s *soak) { s.killDaemon(nil) }},
	{"kill daemon in a deploy", 1, func(s *soak) { s.killDaemon((*soak).tryRedeploy) }},
	{"kill daemon in a set", 1, func(s *soak) { s.killDaemon((*soak).trySet) }},
	{"kill daemon in a rollback", 1, func(s *soak) { s.killDaemon((*soak).tryRollback) }},
	{"kill daemon in snapshot rm", 1, func(s *soak) { s.killDaemon((*soak).tryRemoveSnapshot) }},
	{"restart daemon", 1, (*soak).restartDaemon},
}

func (s *soak) disturbOnce() {
	sum := 0
	for _, d := range soakDeeds {
		sum += d.weight
	}
	n := s.rand.IntN(sum)
	for _, d := range soakDeeds {
		if n -= d.weight; n < 0 {
			d.do(s)
			return
		}
	}
}

// must notes a deed of the command line that nothing excuses from working.
func (s *soak) must(event string, do func() error) {
	b := s.ledger.disturb(disturbance{Event: event})
	err := do()
	if err != nil {
		s.ledger.fault("%s: %v", event, err)
	}
	s.ledger.over(b, err)
}

func (s *soak) removeSnapshot() { s.must("snapshot rm", s.tryRemoveSnapshot) }

// tryRemoveSnapshot removes a snapshot, which must then not be there.
func (s *soak) tryRemoveSnapshot() error {
	id, err := s.someSnapshot()
	if id == "" || err != nil {
		return err
	}
	if _, err := s.d.cli("snapshot", "rm", id); err != nil {
		return err
	}
	s.removed = append(s.removed, id)
	return nil
}

// someSnapshot picks one of those that there are, "" when there is none.
func (s *soak) someSnapshot() (string, error) {
	snaps, err := s.d.client.Snapshots(s.d.ctx(30*time.Second), "")
	if err != nil || len(snaps) == 0 {
		return "", err
	}
	return snaps[s.rand.IntN(len(snaps))].ID, nil
}

// createSnapshot makes a snapshot and removes those that it takes the place of.
func (s *soak) createSnapshot() {
	name := []string{"warm", "cold", "hook", "odd", "changing", "crash", "narrow"}[s.rand.IntN(7)]
	s.must("snapshot create", func() error {
		before, err := s.d.client.Snapshots(s.d.ctx(30*time.Second), name)
		if err == nil {
			_, err = s.d.cli("snapshot", "create", name)
		}
		if err != nil {
			return err
		}
		for _, snap := range before {
			if _, err := s.d.cli("snapshot", "rm", snap.ID); err != nil {
				return err
			}
			s.removed = append(s.removed, snap.ID)
		}
		return nil
	})
}

func (s *soak) verifySnapshot() {
	s.must("snapshot verify", func() error {
		id, err := s.someSnapshot()
		if id == "" || err != nil {
			return err
		}
		_, err = s.d.cli("snapshot", "verify", id)
		return err
	})
}

func (s *soak) prune() {
	s.must("image prune", func() error {
		_, err := s.d.client.PruneImages(s.d.ctx(time.Minute))
		return err
	})
}

// removeAndDeploy takes a function away for a while: its callers are told that
// there is none, or that it goes.
func (s *soak) removeAndDeploy() {
	b := s.ledger.disturb(disturbance{Event: "rm and deploy", Function: "brief", Excuses: true})
	_, err := s.d.cli("rm", "brief")
	if err == nil {
		_, err = s.d.cli(append([]string{"deploy", "functions/hello", "--name", "brief"}, soakFlags("brief")...)...)
	}
	if err != nil {
		s.ledger.fault("rm and deploy: %v", err)
	}
	s.ledger.over(b, err)
}

// killVMM kills one VMM process, which may be in use, start, or wait.
func (s *soak) killVMM() {
	pids := machines(s.d.data())
	if len(pids) == 0 {
		return
	}
	slices.Sort(pids)
	pid := pids[s.rand.IntN(len(pids))]
	is, _ := s.d.client.Instances(s.d.ctx(30*time.Second), "")
	function := "" // one that is not an instance yet may become anyone's
	for _, i := range is {
		if i.PID == pid {
			function = i.Function
		}
	}
	b := s.ledger.disturb(disturbance{Event: "kill VMM", Function: function, Excuses: true})
	err := syscall.Kill(pid, syscall.SIGKILL)
	eventually(s.t, fmt.Sprintf("the killed VMM %d is gone from the daemon's list", pid), time.Minute, func() error {
		is, err := s.d.client.Instances(s.d.ctx(30*time.Second), "")
		for _, i := range is {
			if i.PID == pid {
				return fmt.Errorf("it is there: %+v", i)
			}
		}
		return err
	})
	s.ledger.over(b, err)
}

// killDaemon kills the daemon, in the middle of what meanwhile does, and starts
// another, which must be right at once.
func (s *soak) killDaemon(meanwhile func(*soak) error) {
	settled := s.settle()
	b := s.ledger.disturb(disturbance{Event: "kill daemon", Settled: settled, Excuses: true, Hard: true})
	ended := make(chan error, 1)
	moment := 300 * time.Millisecond // one that nobody chose
	if meanwhile != nil {
		moment = 6 * time.Second
	}
	moment = time.Duration(s.rand.Int64N(int64(moment)))
	if meanwhile != nil {
		go func() { ended <- meanwhile(s) }()
	} else {
		ended <- nil
	}
	time.Sleep(moment)
	s.d.kill()
	<-ended
	before := leftovers(s.d.data())
	s.d.up()
	now := leftovers(s.d.data())
	for what := range before {
		if now[what] && !strings.HasPrefix(what, "namespace") && !strings.HasPrefix(what, "link") && !strings.HasPrefix(what, "nft") && !ownCgroup(what) {
			s.ledger.fault("left from before the daemon was killed: %s", what)
		}
	}
	s.afterRestart()
	s.ledger.over(b, nil)
}

// ownCgroup is the daemon's own, which holds those of its machines.
func ownCgroup(what string) bool {
	return strings.HasPrefix(what, "cgroup ") && !strings.HasSuffix(what, "/cgroup.procs")
}

// restartDaemon ends the daemon as an init system does.
func (s *soak) restartDaemon() {
	b := s.ledger.disturb(disturbance{Event: "restart daemon", Excuses: true})
	s.d.down()
	for what := range leftovers(s.d.data()) {
		s.ledger.fault("left after the daemon's end: %s", what)
	}
	s.d.up()
	s.afterRestart()
	s.ledger.over(b, nil)
}

// afterRestart: what was deployed is there, as it was set, what was removed is not.
func (s *soak) afterRestart() {
	s.settingsStay()
	for name := range soakFunctions {
		if _, err := s.d.client.Function(s.d.ctx(30*time.Second), name); err != nil {
			s.ledger.fault("after a restart: function %s: %v", name, err)
		}
	}
	snaps, err := s.d.client.Snapshots(s.d.ctx(30*time.Second), "")
	if err != nil {
		s.ledger.fault("after a restart: %v", err)
	}
	for _, snap := range snaps {
		if slices.Contains(s.removed, snap.ID) {
			s.ledger.fault("snapshot %s was removed and is there again after a restart", snap.ID)
		}
	}
	for _, id := range s.removed {
		if _, err := os.Stat(s.d.data() + "/snapshots/" + id); err == nil {
			s.ledger.fault("the files of snapshot %s, which was removed, are there after a restart", id)
		}
	}
}
