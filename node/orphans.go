package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"github.com/skep-dev/skep/internal/marked"
	"golang.org/x/sys/unix"
)

// orphans knows the processes that a crashed daemon left. Each has a mark in its
// environment, or among its arguments, but both are its own to overwrite, and a
// guest that has taken over its VMM may have. So a process is known by where it
// is, too, which it cannot change: in a root directory below the run directory, or,
// as one of the users that VMMs run as, in a network slot.
type orphans struct {
	mark     string
	runDir   string
	uidBase  int // -1: VMMs have no users of their own
	inSpaces func() ([]int, error)
}

// find lists them, but for this process.
func (o orphans) find() ([]int, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	inSpaces, err := o.inSpaces()
	if err != nil {
		return nil, err
	}
	var found []int
	for _, p := range all {
		if p.PID != unix.Getpid() && o.isOne(p, slices.Contains(inSpaces, p.PID)) {
			found = append(found, p.PID)
		}
	}
	return found, nil
}

// maxUsers is more than the slots that a node has: VMMs run as uidBase and the
// users after it.
const maxUsers = 1 << 16

// isOne is false for processes that are gone and for those that are not ours to
// look into: they are not ours either.
func (o orphans) isOne(p procfs.Proc, inSpace bool) bool {
	return marked.Bears(p, o.mark) || o.below(p) || inSpace && o.isVMMUser(p)
}

func (o orphans) below(p procfs.Proc) bool {
	root, err := p.RootDir()
	rest, ok := strings.CutPrefix(root, o.runDir+"/")
	id, _, _ := strings.Cut(rest, "/")
	return err == nil && ok && instanceRE.MatchString(id)
}

func (o orphans) isVMMUser(p procfs.Proc) bool {
	st, err := p.NewStatus()
	if err != nil || o.uidBase < 0 {
		return false
	}
	uid, base := st.UIDs[1], uint64(o.uidBase)
	return uid >= base && uid < base+maxUsers
}

// orphanTimeout is how long all killed processes together may take to be gone.
const orphanTimeout = 10 * time.Second

// end kills them, and what they start meanwhile, and waits until all are gone. It
// returns those that it has ended, and an error that names those that stay: a
// process in the middle of an operation of a broken device cannot be ended.
func (o orphans) end(ctx context.Context) (ended []int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, orphanTimeout, errors.New("it does not end after SIGKILL"))
	defer cancel()
	for {
		pids, err := o.find()
		if err != nil || len(pids) == 0 {
			return ended, err
		}
		gone, err := o.killAll(ctx, pids)
		ended = append(ended, gone...)
		if err != nil {
			return ended, err
		}
	}
}

// killAll signals all before it waits for any.
func (o orphans) killAll(ctx context.Context, pids []int) (gone []int, err error) {
	var errs []error
	killed := map[int]int{} // pidfd by process
	for _, pid := range pids {
		fd, err := o.kill(pid)
		if err != nil {
			errs = append(errs, fmt.Errorf("ending process %d: %w", pid, err))
		} else if fd >= 0 {
			defer unix.Close(fd)
			killed[pid] = fd
		}
	}
	for pid, fd := range killed {
		if err := marked.Await(ctx, fd); err != nil {
			errs = append(errs, fmt.Errorf("ending process %d: %w", pid, err))
			continue
		}
		gone = append(gone, pid)
	}
	return gone, errors.Join(errs...)
}

// kill signals the process, and returns a pidfd of it; -1 when it is gone.
func (o orphans) kill(pid int) (int, error) {
	var where error
	fd, err := marked.Kill(pid, func(p procfs.Proc) bool {
		var inSpaces []int
		inSpaces, where = o.inSpaces()
		return where == nil && o.isOne(p, slices.Contains(inSpaces, pid))
	})
	return fd, errors.Join(err, where)
}

// orphans of this node's data directory.
func (n *Node) orphans() orphans {
	runDir := n.cfg.RunDir
	if real, err := filepath.EvalSymlinks(runDir); err == nil {
		runDir = real
	}
	return orphans{mark: n.cfg.mark(), runDir: runDir, uidBase: n.cfg.UIDBase, inSpaces: n.deps.Inhabitants}
}
