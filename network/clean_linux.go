package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// clean makes a space as good as new: no process in it, a new tap, none of the
// last instance's connections. An error means that it must be destroyed.
func (s *Slots) clean(p *space) error {
	id, err := inode(p.path())
	if err != nil {
		return err
	}
	pids, err := processesIn(map[uint64]string{id: p.name})
	if err != nil {
		return err
	}
	if left := pids[p.name]; len(left) > 0 {
		return fmt.Errorf("processes %v are still in it", left)
	}
	return s.in(p.ns, func() error {
		// In this order: what the connections send when they are reset finds no
		// device, and so cannot wait for the next guest.
		if err := removeTap(); err != nil {
			return err
		}
		if err := resetConnections(); err != nil {
			return err
		}
		return s.addTap()
	})
}

// resetConnections ends every TCP connection of the calling thread's namespace,
// those included that nobody has open any more but that still have bytes to
// send: they would send them to the next guest.
func resetConnections() error {
	socks, err := netlink.SocketDiagTCP(unix.AF_INET)
	if err != nil {
		return fmt.Errorf("listing connections: %w", err)
	}
	for _, k := range socks {
		// TIME_WAIT has nothing to send.
		if k.State == netlink.TCP_TIME_WAIT || k.State == netlink.TCP_LISTEN || k.State == netlink.TCP_CLOSE {
			continue
		}
		local := &net.TCPAddr{IP: k.ID.Source, Port: int(k.ID.SourcePort)}
		remote := &net.TCPAddr{IP: k.ID.Destination, Port: int(k.ID.DestinationPort)}
		if err := netlink.SocketDestroy(local, remote); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("resetting the connection to %v: %w", remote, err)
		}
	}
	return nil
}

// processesIn finds the processes that are in these namespaces, a map from
// inode to name. Threads of this process are there only for an instant.
func processesIn(spaces map[uint64]string) (map[string][]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	self := os.Getpid()
	found := make(map[string][]int)
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == self {
			continue
		}
		id, err := inode(filepath.Join("/proc", d.Name(), "ns/net"))
		switch {
		case err == nil:
			if name, ok := spaces[id]; ok {
				found[name] = append(found[name], pid)
			}
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH):
			// It has ended.
		case errors.Is(err, fs.ErrPermission):
			// It may do more than this daemon, so it is none of its children.
		default:
			return nil, fmt.Errorf("looking into process %d: %w", pid, err)
		}
	}
	return found, nil
}
