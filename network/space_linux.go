package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapName is the tap's name in every namespace.
const tapName = "tap0"

// space is a namespace with its devices: what a Slot lends.
type space struct {
	index  int
	name   string
	ns     *os.File // its descriptor, closed when the space is destroyed
	egress string
	uplink *uplink // nil without NAT
}

func (p *space) path() string { return filepath.Join(netnsDir, p.name) }

// build makes a space with that index. When it fails nothing is left.
func (s *Slots) build(index int, egress string) (*space, error) {
	p := &space{index: index, name: s.opts.Prefix + "-" + strconv.Itoa(index), egress: egress}
	ns, err := s.newNamespace(p.name, func() error {
		if err := writeSysctls(s.sysctls(egress)); err != nil {
			return err
		}
		if err := bringUp("lo"); err != nil {
			return err
		}
		return s.addTap()
	})
	if err != nil {
		return nil, fmt.Errorf("making network slot %s: %w", p.name, err)
	}
	p.ns = ns
	if egress == egressNAT {
		if err := s.connectUplink(p); err != nil {
			return nil, errors.Join(fmt.Errorf("giving network slot %s egress: %w", p.name, err), s.destroy(p))
		}
	}
	return p, nil
}

// sysctl is a setting of the network namespace that the thread is in.
type sysctl struct{ name, value string }

func (s *Slots) sysctls(egress string) []sysctl {
	forward := "0"
	if egress == egressNAT {
		forward = "1"
	}
	return []sysctl{
		{"ipv4/ip_forward", forward}, // a new namespace copies the host's
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		// What was learnt of one guest's connections must not shape another's.
		{"ipv4/tcp_no_metrics_save", "1"},
		// The gateway may open connections to one port faster than their ends
		// leave TIME_WAIT.
		{"ipv4/ip_local_port_range", "1024 65535"},
		{"ipv4/tcp_tw_reuse", "1"},
	}
}

func writeSysctls(all []sysctl) error {
	for _, c := range all {
		err := os.WriteFile(filepath.Join("/proc/sys/net", c.name), []byte(c.value), 0)
		if os.IsNotExist(err) {
			continue // a kernel without IPv6, or without the feature
		}
		if err != nil {
			return fmt.Errorf("setting net/%s to %s (in a container, /proc/sys must be writable): %w", c.name, c.value, err)
		}
	}
	return nil
}

// addTap makes the tap in the calling thread's namespace.
func (s *Slots) addTap() error {
	if err := persistentTap(); err != nil {
		return fmt.Errorf("making %s: %w", tapName, err)
	}
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		return fmt.Errorf("finding %s: %w", tapName, err)
	}
	if err := netlink.LinkSetHardwareAddr(link, s.opts.HostMAC); err != nil {
		return fmt.Errorf("setting the MAC of %s: %w", tapName, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", tapName, err)
	}
	gateway := &netlink.Addr{IPNet: &net.IPNet{IP: s.opts.Gateway, Mask: net.CIDRMask(s.opts.PrefixLen, 32)}}
	if err := netlink.AddrAdd(link, gateway); err != nil {
		return fmt.Errorf("giving %s the address %v: %w", tapName, gateway, err)
	}
	// Without ARP, the first packet to a guest is the SYN.
	guest := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: s.opts.Guest, HardwareAddr: s.opts.GuestMAC}
	if err := netlink.NeighAdd(guest); err != nil {
		return fmt.Errorf("giving %s the neighbour %v: %w", tapName, s.opts.Guest, err)
	}
	return nil
}

// persistentTap makes a tap that stays when the descriptor is closed. It has no
// owner: whoever is in the namespace may attach to it, which is the VMM alone.
//
// No process is forked meanwhile: until its exec that would have the descriptor too,
// and keep a VMM from attaching.
func persistentTap() error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /dev/net/tun (modprobe tun): %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(tapName)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	return os.NewSyscallError("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

func bringUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}

// destroy takes a space away.
func (s *Slots) destroy(p *space) error {
	var errs []error
	if p.uplink != nil {
		errs = append(errs, s.cutUplink(p.uplink))
	}
	// Connections that the daemon still holds would keep the namespace, and
	// through it the tap.
	errs = append(errs, s.in(p.ns, removeTap))
	errs = append(errs, unpin(p.path()), p.ns.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("destroying network slot %s: %w", p.name, err)
	}
	return nil
}

// removeTap removes the tap from the calling thread's namespace, and with it
// whatever is queued in it.
func removeTap() error {
	link, err := netlink.LinkByName(tapName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", tapName, err)
	}
	return nil
}
