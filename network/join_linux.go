package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Joined is a tap in a namespace that somebody else has made and owns, such as a
// pod's. It dials as a Slot does, and is nobody's to lend again.
type Joined struct {
	Slot
	ns    *os.File
	slots *Slots
}

// JoinOptions are those of Options that matter to a single guest.
type JoinOptions struct {
	GuestMAC, HostMAC net.HardwareAddr
	Guest, Gateway    net.IP
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
	j := &Joined{slots: &Slots{opts: opts, log: opts.Logger, home: home}}
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
	if err := j.slots.in(j.ns, func() error { return j.furnish(o.Ports) }); err != nil {
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
func (j *Joined) furnish(p Ports) error {
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
	return addJoinRules(j.slots.opts, p)
}

// Open lets others reach the guest of a namespace that was joined with closed Ports.
func (j *Joined) Open(p Ports) error {
	if err := j.slots.in(j.ns, func() error { return openJoinRules(j.slots.opts, p) }); err != nil {
		return fmt.Errorf("opening the way to the guest in network namespace %s: %w", j.Name, err)
	}
	return nil
}

func removeJoined() error { return errors.Join(removeTap(), deleteTable(slotTable)) }

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
