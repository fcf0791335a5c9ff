package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Joined is a tap in a namespace that somebody else has made and owns, such as a
// pod's. It dials as a Slot does, and is nobody's to lend again.
type Joined struct {
	Slot
	o     JoinOptions
	ns    *os.File
	slots *Slots
}

// JoinOptions are those of Options that matter to a single guest.
type JoinOptions struct {
	GuestMAC, HostMAC net.HardwareAddr
	Guest, Gateway    net.IP
	Guest6, Gateway6  netip.Addr // of one network of 126 bits, for a namespace that HasIPv6; unset: IPv4 only
	Ports             Ports
	Logger            *slog.Logger // nil: discard
}

// Join makes a tap in the namespace at path; "" makes a namespace for it, which
// has no name and ends with whoever is in it. Close it.
func Join(path string, o JoinOptions) (_ *Joined, err error) {
	opts := Options{Prefix: "join", GuestMAC: o.GuestMAC, HostMAC: o.HostMAC, Guest: o.Guest, Gateway: o.Gateway, Logger: o.Logger, mark: agentMark}
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("joining a network namespace: %w", err)
	}
	home, err := os.Open(ownThread)
	if err != nil {
		return nil, err
	}
	j := &Joined{o: o, slots: &Slots{opts: opts, log: opts.Logger, home: home}}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Close())
		}
	}()
	if path == "" {
		path, err = j.unshare()
	} else {
		j.ns, err = os.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("joining a network namespace: %w", err)
	}
	if err := j.slots.in(j.ns, j.furnish); err != nil {
		return nil, fmt.Errorf("joining network namespace %s: %w", path, err)
	}
	j.Slot = Slot{Name: path, NetNS: path, Tap: tapName,
		impl: impl{&lease{slots: j.slots, space: &space{name: path, ns: j.ns}, ended: make(chan struct{})}}}
	return j, nil
}

// unshare makes a namespace that only this process holds, and returns a path of
// it that is good within it and its children.
func (j *Joined) unshare() (path string, err error) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			j.ns, err = os.Open(ownThread)
		}
		if err == nil {
			err = errors.Join(bringUp("lo"), writeSysctls([]sysctl{{"ipv6/conf/all/disable_ipv6", "1"}, {"ipv6/conf/default/disable_ipv6", "1"}}))
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), j.ns.Fd()), nil
}

// furnish makes tap and rules in the calling thread's namespace, over what an
// earlier guest may have left there.
func (j *Joined) furnish() error {
	if err := removeJoined(); err != nil {
		return err
	}
	if err := j.slots.addTap(); err != nil {
		return err
	}
	if err := writeSysctls([]sysctl{
		{"ipv4/ip_forward", "1"},
		// Packets from 127.0.0.1 may leave by the tap, where they get another source.
		{filepath.Join("ipv4/conf", tapName, "route_localnet"), "1"},
	}); err != nil {
		return err
	}
	if j.o.Guest6.IsValid() {
		if err := j.addIPv6(); err != nil {
			return err
		}
	}
	return addJoinRules(j.o.Ports, j.rules()...)
}

func (j *Joined) rules() []guestRules {
	all := []guestRules{rules4(j.slots.opts)}
	if j.o.Guest6.IsValid() {
		all = append(all, rules6(j.o.Guest6))
	}
	return all
}

// HasIPv6 says whether the namespace at path has an IPv6 address by which others reach
// it: one that is neither of a link nor of this host only.
func HasIPv6(path string) (bool, error) {
	if path == "" {
		return false, nil // Join makes one that has none
	}
	ns, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("looking for IPv6 addresses: %w", err)
	}
	defer ns.Close()
	home, err := os.Open(ownThread)
	if err != nil {
		return false, err
	}
	defer home.Close()
	var all []netlink.Addr
	err = (&Slots{home: home}).in(ns, func() (err error) {
		all, err = netlink.AddrList(nil, netlink.FAMILY_V6)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking for IPv6 addresses in network namespace %s: %w", path, err)
	}
	return slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.Scope == unix.RT_SCOPE_UNIVERSE && a.IP.To4() == nil }), nil
}

// addIPv6 gives the tap the gateway's address, and lets packets pass.
func (j *Joined) addIPv6() error {
	conf := filepath.Join("ipv6/conf", tapName)
	if err := writeSysctls([]sysctl{
		{filepath.Join(conf, "disable_ipv6"), "0"},
		{filepath.Join(conf, "accept_ra"), "0"},
		{"ipv6/conf/all/forwarding", "1"},
	}); err != nil {
		return err
	}
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		return fmt.Errorf("finding %s: %w", tapName, err)
	}
	// Nobody else is there, so nobody is asked whether it is taken.
	gateway := &netlink.Addr{IPNet: &net.IPNet{IP: j.o.Gateway6.AsSlice(), Mask: net.CIDRMask(prefix6, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(link, gateway); err != nil {
		return fmt.Errorf("giving %s the address %v: %w", tapName, gateway, err)
	}
	guest := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: j.o.Guest6.AsSlice(), HardwareAddr: j.o.GuestMAC}
	if err := netlink.NeighAdd(guest); err != nil {
		return fmt.Errorf("giving %s the neighbour %v: %w", tapName, j.o.Guest6, err)
	}
	// An answer that comes by the tap to who has asked at ::1: the kernel looks for a route by
	// that device.
	answers := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Priority: 1024}
	if err := netlink.RouteAdd(answers); err != nil {
		return fmt.Errorf("letting ::1 be answered by %s: %w", tapName, err)
	}
	return nil
}

const prefix6 = 126

// Open lets others reach the guest of a namespace that was joined with closed Ports.
func (j *Joined) Open(p Ports) error {
	if err := j.slots.in(j.ns, func() error { return openJoinRules(p, j.rules()...) }); err != nil {
		return fmt.Errorf("opening the way to the guest in network namespace %s: %w", j.Name, err)
	}
	return nil
}

func removeJoined() error {
	return errors.Join(removeTap(), deleteTable(slotTable), deleteTableOf(nftables.TableFamilyIPv6, slotTable))
}

// Close takes tap and rules out of the namespace, and lets go of it. It is
// idempotent.
func (j *Joined) Close() error {
	var errs []error
	if j.lease != nil && !j.lease.end() {
		return nil
	}
	if j.ns != nil {
		errs = append(errs, j.slots.in(j.ns, removeJoined), j.ns.Close())
		j.ns = nil
	}
	errs = append(errs, j.slots.home.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("leaving a network namespace: %w", err)
	}
	return nil
}

// Leave is Close for who has joined a namespace and died since.
func Leave(path string) error {
	ns, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	home, err := os.Open(ownThread)
	if err != nil {
		return errors.Join(err, ns.Close())
	}
	return (&Joined{ns: ns, slots: &Slots{home: home}}).Close()
}
