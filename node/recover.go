package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// orphanTimeout is how long a killed process may take to be gone.
const orphanTimeout = 10 * time.Second

// recoverProcesses ends what a crashed daemon left running on this data
// directory, and removes the directories and cgroups of its instances.
//
// Orphans are known by the mark in their environment. None can be missed: a
// child inherits the daemon's lock until its exec closes it, and from its exec
// on it has the mark; so whoever holds the lock sees every child marked.
func (n *Node) recoverProcesses(ctx context.Context) error {
	pids, err := marked(n.cfg.mark())
	if err != nil {
		return fmt.Errorf("looking for what a crash left running: %w", err)
	}
	for _, pid := range pids {
		if err := endOrphan(ctx, pid, n.cfg.mark()); err != nil {
			return fmt.Errorf("ending process %d that a crash left running: %w", pid, err)
		}
		n.log.Info("ended an orphaned process", "pid", pid)
	}
	for _, dir := range []string{n.cfg.RunDir, n.cfg.path("mem")} {
		if err := removeInstances(dir, os.RemoveAll); err != nil {
			return err
		}
	}
	if root := n.cfg.Limits.CgroupRoot; root != "" {
		// A cgroup is removed by rmdir alone: its files are not files.
		return removeInstances(root, removeCgroup)
	}
	return nil
}

func removeCgroup(dir string) error {
	deadline := time.Now().Add(orphanTimeout)
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		// It stays busy for a moment after its last process has been reaped.
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// removeInstances removes the entries of dir that are named like an instance.
func removeInstances(dir string, remove func(string) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cleaning up after a crash: %w", err)
	}
	for _, e := range entries {
		if !instanceRE.MatchString(e.Name()) {
			continue
		}
		if err := remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("cleaning up after a crash: %w", err)
		}
	}
	return nil
}

// marked lists the processes, but for this one, with the mark in their
// environment.
func marked(mark string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && hasMark(pid, mark) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasMark is false for processes that are gone and for those whose environment
// is not ours to read: they are not ours either. A jailer wipes the environment:
// behind it the mark is the last of the arguments that the VMM ignores.
func hasMark(pid int, mark string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if string(kv) == mark {
			return true
		}
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.HasSuffix(args, []byte("\x00--\x00"+mark+"\x00"))
}

// endOrphan kills the process through a pidfd, so that no other that got its
// number meanwhile is hit, and waits until it is gone.
func endOrphan(ctx context.Context, pid int, mark string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	if !hasMark(pid, mark) {
		return nil // the number is another's now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pidfd_send_signal: %w", err)
	}
	deadline := time.Now().Add(orphanTimeout)
	for {
		left := time.Until(deadline)
		if left <= 0 || ctx.Err() != nil {
			return fmt.Errorf("it does not end after SIGKILL")
		}
		k, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(min(left, 100*time.Millisecond)/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for its end: %w", err)
		}
		if k > 0 {
			return nil
		}
	}
}
