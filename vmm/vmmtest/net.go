package vmmtest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tapName = "tap0"

// newNetNS makes a network namespace with a tap of the host's address, and
// returns its path.
func newNetNS(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	onThread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keeping it: %w", err)
		}
		return addTap()
	})
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("removing the network namespace: %v", err)
		}
	})
	return path
}

func addTap() error {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: tapName},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("adding a tap: %w", err)
	}
	addr, err := netlink.ParseAddr("172.31.254.1/30")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(tap, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(tap)
}

// onThread runs f on a thread of its own, which is not used again.
func onThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ask returns the line that the guest in the namespace answers on its port 10.
func ask(ctx context.Context, t testing.TB, netns string) string {
	t.Helper()
	var line string
	onThread(t, func() error {
		ns, err := os.Open(netns)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		for ctx.Err() == nil {
			d := net.Dialer{Timeout: time.Second}
			conn, err := d.DialContext(ctx, "tcp4", "172.31.254.2:10")
			if err != nil {
				time.Sleep(10 * time.Millisecond) // refused: the guest does not listen yet
				continue
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			line, err = bufio.NewReader(conn).ReadString('\n')
			return err
		}
		return fmt.Errorf("dialling the guest: %w", context.Cause(ctx))
	})
	return line
}

// ear hears what a guest sends.
type ear int

// listen begins to hear what comes by the namespace's tap.
func listen(t testing.TB, netns string) (e ear) {
	t.Helper()
	onThread(t, func() error {
		ns, err := os.Open(netns)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ARP)))
		e = ear(fd)
		return err
	})
	t.Cleanup(func() { _ = unix.Close(int(e)) })
	return e
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// announcements counts the ARP packets heard in which a guest tells its own address,
// unasked: sender and target are the same.
func (e ear) announcements(t testing.TB) (n int) {
	t.Helper()
	const sender, target, end = 14, 24, 28 // where the addresses are
	b := make([]byte, 64)
	for {
		size, from, err := unix.Recvfrom(int(e), b, 0)
		if err == unix.EAGAIN {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if ok && link.Pkttype != unix.PACKET_OUTGOING && size >= end && string(b[sender:sender+4]) == string(b[target:end]) {
			n++
		}
	}
}
