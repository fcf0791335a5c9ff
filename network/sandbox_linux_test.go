package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// inSandbox marks the test binary that runs in namespaces of its own.
const inSandbox = "SKEP_NETWORK_SANDBOX"

// The tests run with a network and /run/netns of their own, as if on another
// host: what they do to "the host" is done there, and is gone with them.
func TestMain(m *testing.M) {
	if os.Getenv(inSandbox) != "" || !testenv.Has("root") || !testenv.Has("netns") {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inSandbox+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig goes by the thread
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "running the tests in namespaces of their own:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// sandbox makes the mounts of the namespace that TestMain made, once.
var sandbox = sync.OnceValue(func() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("none", netnsDir, "tmpfs", 0, ""); err != nil {
		return err
	}
	return bringUp("lo")
})

var (
	testGuestMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	testHostMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	testGuest    = net.IPv4(172, 31, 254, 2)
	testGateway  = net.IPv4(172, 31, 254, 1)
	testGuest6   = netip.MustParseAddr("fd73:6b65:70::2")
	testGateway6 = netip.MustParseAddr("fd73:6b65:70::1")
)

func testOptions(t testing.TB, prefix string) Options {
	return Options{
		Prefix: prefix, GuestMAC: testGuestMAC, HostMAC: testHostMAC, Guest: testGuest, Gateway: testGateway,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// open opens a pool in the sandbox; the test fails if anything of it is left.
func open(t testing.TB, opts Options) *Slots {
	t.Helper()
	testenv.Need(t, "root", "netns", "tap")
	if err := sandbox(); err != nil {
		t.Fatal(err)
	}
	testenv.NoLeaks(t, testenv.Leaks{NetNSPrefix: opts.Prefix + "-"})
	s, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
		checkNothingLeft(t, opts.Prefix)
	})
	return s
}

// checkNothingLeft looks for devices, routes and tables of a closed pool.
func checkNothingLeft(t testing.TB, prefix string) {
	t.Helper()
	var n nat
	n.init(Options{Prefix: prefix, NATPool: defaultNATPool})
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, n.veths) {
			t.Errorf("device %s is left", l.Attrs().Name)
		}
	}
	if hasTable(t, prefix) {
		t.Errorf("nftables table %s is left", prefix)
	}
}

func take(t testing.TB, s *Slots, egress string) *Slot {
	t.Helper()
	slot, err := s.Take(t.Context(), egress)
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// attach opens a slot's tap as a VMM does.
func attach(t testing.TB, s *Slots, slot *Slot) *os.File {
	t.Helper()
	return openTap(t, s, slot.lease.space.ns, slot.Tap)
}

func openTap(t testing.TB, s *Slots, ns *os.File, name string) *os.File {
	t.Helper()
	var tap *os.File
	err := s.in(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		tap = os.NewFile(uintptr(fd), "tap")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tap
}

// fakeGuest is a network namespace with the guest's address, wired to the
// slot's tap frame by frame, as a VMM would.
type fakeGuest struct {
	s    *Slots
	ns   *os.File
	taps [2]*os.File
	wg   sync.WaitGroup
	once sync.Once
}

// newGuest makes a guest that has not attached to the tap yet.
func newGuest(t testing.TB, s *Slots) *fakeGuest {
	t.Helper()
	g := &fakeGuest{s: s}
	err := s.away(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		g.ns, err = os.Open(ownThread)
		return errors.Join(err, bringUp("lo"))
	})
	if err != nil {
		t.Fatal(err)
	}
	g.taps[1] = openTap(t, s, g.ns, "eth0")
	err = s.in(g.ns, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		defer waitRunning(t, "eth0")
		return errors.Join(
			netlink.LinkSetHardwareAddr(link, testGuestMAC), netlink.LinkSetUp(link),
			netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: testGuest, Mask: net.CIDRMask(30, 32)}}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: testGateway}))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.end)
	return g
}

// waitRunning waits until a device of the calling thread's namespace sends.
func waitRunning(t testing.TB, name string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err == nil && link.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s does not run: %v", name, err)
			return
		}
	}
}

// bootGuest makes a guest that runs on the slot.
func bootGuest(t testing.TB, s *Slots, slot *Slot) *fakeGuest {
	t.Helper()
	g := newGuest(t, s)
	g.run(attach(t, s, slot))
	_ = s.in(slot.lease.space.ns, func() error { waitRunning(t, slot.Tap); return nil })
	return g
}

// run lets the guest have the frames of the tap.
func (g *fakeGuest) run(tap *os.File) {
	g.taps[0] = tap
	for i := range 2 {
		g.wg.Go(func() {
			from, to := g.taps[i], g.taps[1-i]
			frame := make([]byte, 70000)
			for {
				n, err := from.Read(frame)
				if err != nil {
					return
				}
				_, _ = to.Write(frame[:n]) // a frame may be lost
			}
		})
	}
}

// end is the end of the VMM's process.
func (g *fakeGuest) end() {
	g.once.Do(func() {
		for _, tap := range g.taps {
			if tap != nil {
				tap.Close()
			}
		}
		g.wg.Wait()
		g.ns.Close()
	})
}

// listen opens a TCP server in a namespace that answers each connection with
// the greeting and then echoes.
func listen(t testing.TB, s *Slots, ns *os.File, address, greeting string) net.Listener {
	t.Helper()
	var l net.Listener
	err := s.in(ns, func() (err error) {
		l, err = net.Listen(familyOf(address), address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(t.Context(), func() { c.Close() })
				defer stop()
				_, _ = io.WriteString(c, greeting)
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l
}

// familyOf is the network of an address with its port.
func familyOf(address string) string {
	if strings.HasPrefix(address, "[") {
		return "tcp6"
	}
	return "tcp4"
}

// dialFrom connects from inside a namespace.
func dialFrom(s *Slots, ns *os.File, address string, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	err := s.in(ns, func() (err error) {
		c, err = net.DialTimeout(familyOf(address), address, timeout)
		return err
	})
	return c, err
}

// greeted reads a server's greeting.
func greeted(t testing.TB, c net.Conn, want string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}
