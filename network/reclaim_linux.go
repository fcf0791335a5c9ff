package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Leftover is a namespace of an earlier daemon that still has processes in it.
type Leftover struct {
	Name  string
	NetNS string
	PIDs  []int
}

// reclaim removes what an earlier daemon with this prefix left. Only what
// carries the prefix is looked at.
func (s *Slots) reclaim(ctx context.Context) error {
	names, busy, err := inhabited(s.opts.Prefix)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(netnsDir, name)
		if pids := busy[name]; len(pids) > 0 {
			s.left = append(s.left, Leftover{Name: name, NetNS: path, PIDs: pids})
			s.indices[indexOf(s.opts.Prefix, name)] = true
			s.log.Warn("a network namespace of an earlier daemon has processes in it, leaving it", "slot", name, "pids", pids)
			continue
		}
		if err := s.removeNamespace(path); err != nil {
			return err
		}
	}
	return s.nat.reclaim()
}

// removeNamespace removes a namespace of an earlier daemon and its tap.
func (s *Slots) removeNamespace(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reclaiming a network namespace: %w", err)
	}
	defer ns.Close()
	// A crash can come before the name has its namespace; then there is no tap,
	// and entering fails.
	_ = s.in(ns, removeTap)
	return unpin(path)
}

// Inhabitants are the processes in the slots of an earlier daemon with that
// prefix. Open leaves them alone, and their slots.
func Inhabitants(prefix string) ([]int, error) {
	_, busy, err := inhabited(prefix)
	var all []int
	for _, pids := range busy {
		all = append(all, pids...)
	}
	return all, err
}

// inhabited lists the namespaces PREFIX-N and the processes in them.
func inhabited(prefix string) (names []string, busy map[string][]int, err error) {
	if names, err = namespaces(prefix); err != nil {
		return nil, nil, err
	}
	spaces := make(map[uint64]string)
	for _, name := range names {
		if id, err := inode(filepath.Join(netnsDir, name)); err == nil {
			spaces[id] = name
		}
	}
	if len(spaces) > 0 {
		busy, err = processesIn(spaces)
	}
	return names, busy, err
}

// namespaces lists the names PREFIX-N.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if indexOf(prefix, e.Name()) >= 0 {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// indexOf returns N of PREFIX-N, -1 for any other name.
func indexOf(prefix, name string) int {
	digits, ok := strings.CutPrefix(name, prefix+"-")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || strconv.Itoa(n) != digits || n < 0 {
		return -1
	}
	return n
}

// removeLeftovers removes the leftovers whose processes have ended since Open.
func (s *Slots) removeLeftovers() error {
	var errs []error
	for _, l := range s.Leftovers() {
		id, err := inode(l.NetNS)
		if err != nil {
			continue // somebody else removed it
		}
		busy, err := processesIn(map[uint64]string{id: l.Name})
		if err == nil && len(busy) == 0 {
			err = s.removeNamespace(l.NetNS)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
