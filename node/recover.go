package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/cgroup"
)

// recoverProcesses ends what a crashed daemon left running on this data
// directory, and removes the directories and cgroups of its instances.
//
// None can be missed that has not been taken over by its guest: a child inherits
// the daemon's lock until its exec closes it, and from its exec on it has the
// mark; so whoever holds the lock sees every child marked. What cannot be ended
// or removed is told of and left: its names are not used again, its network slot
// is not lent, and the next start tries once more.
func (n *Node) recoverProcesses(ctx context.Context) error {
	groups := n.orphanedGroups()
	for _, g := range groups {
		if err := g.Kill(); err != nil { // all in it at once, whatever they say of themselves
			n.log.Warn("ending what a crash left running in a cgroup", "cgroup", g.Dir(), "error", err)
		}
	}
	ended, err := n.orphans().end(ctx)
	if len(ended) > 0 {
		n.log.Info("ended orphaned processes", "pids", ended)
	}
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("ending what a crash left running: %w", context.Cause(ctx))
		}
		n.log.Warn("what a crash left running goes on; end it, or reboot: it holds memory and processor time", "error", err)
	}
	for _, dir := range []string{n.cfg.RunDir, n.cfg.path("mem")} {
		n.removeInstances(dir)
	}
	for _, g := range groups {
		if err := g.Remove(); err != nil {
			n.log.Warn("a cgroup of a crashed daemon's instance stays", "cgroup", g.Dir(), "error", err)
		}
	}
	return nil
}

// orphanedGroups are the cgroups of instances of an earlier daemon.
func (n *Node) orphanedGroups() []*cgroup.Group {
	root := n.cfg.Limits.CgroupRoot
	if root == "" {
		return nil
	}
	var groups []*cgroup.Group
	for _, dir := range n.instancesIn(root) {
		g, err := cgroup.Orphan(dir)
		if err != nil {
			n.log.Warn("looking for what a crash left running", "error", err)
			continue
		}
		groups = append(groups, g)
	}
	return groups
}

// instancesIn lists the entries of dir that are named like an instance.
func (n *Node) instancesIn(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("cleaning up after a crash", "error", err)
	}
	var found []string
	for _, e := range entries {
		if instanceRE.MatchString(e.Name()) {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found
}

func (n *Node) removeInstances(dir string) {
	for _, path := range n.instancesIn(dir) {
		if err := os.RemoveAll(path); err != nil {
			n.log.Warn("cleaning up after a crash: what is left takes space", "error", err)
		}
	}
}
