package network

import (
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// Probe finds out whether slots can be made on this host, by making the parts
// of one in a namespace that is gone afterwards.
func Probe() error {
	s := &Slots{opts: probeOptions()}
	return inThrowawayNamespace(func() error {
		if err := writeSysctls(s.sysctls(egressNone)); err != nil {
			return err
		}
		return s.addTap()
	})
}

// ProbeNAT finds out whether slots can have egress: it loads the same rules as
// the host would, in a namespace that is gone afterwards.
func ProbeNAT() error {
	return inThrowawayNamespace(func() error {
		opts := probeOptions()
		if err := addHostRules(opts, "skv"); err != nil {
			return err
		}
		return addSlotRules(opts)
	})
}

func probeOptions() Options {
	return Options{
		Prefix: "skep-probe", NATPool: defaultNATPool, PrefixLen: 30,
		GuestMAC: slotEndMAC, HostMAC: hostEndMAC,
		Guest: net.IPv4(172, 31, 254, 2).To4(), Gateway: net.IPv4(172, 31, 254, 1).To4(),
	}
}

// inThrowawayNamespace runs fn in a new namespace without a name. Its thread is
// not used for anything else, and the namespace ends with it.
func inThrowawayNamespace(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("making a network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
