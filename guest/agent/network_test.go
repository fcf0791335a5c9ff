package agent

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/testenv"
)

// A guest has its IPv6 address at once, nobody being asked for it, and a way out by the
// gateway.
func TestSetUpIPv6(t *testing.T) {
	testenv.Need(t, "root", "netns", "tap")
	onOwnThread(func() { // whose network namespace ends with it
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)); err != nil {
			t.Error(err)
			return
		}
		tap, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(tap)
		r, err := unix.NewIfreq("eth0")
		if err == nil {
			r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(tap, unix.TUNSETIFF, r)
		}
		fd, err2 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err = errors.Join(err, err2); err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		if err := errors.Join(setFlags(fd, "eth0", unix.IFF_UP), setUpIPv6()); err != nil {
			t.Error(err)
			return
		}
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		addresses, err := dev.Addrs()
		if err != nil || !strings.Contains(text(addresses), guest.Address6.String()+"/126") {
			t.Errorf("it has %v, %v", addresses, err)
		}
		c, err := net.Dial("udp6", "[2001:db8::1]:9") // which takes a route and an address that is no one's to ask for
		if err != nil {
			t.Errorf("to others: %v", err)
			return
		}
		defer c.Close()
		if from := c.LocalAddr().(*net.UDPAddr).IP.String(); from != guest.Address6.String() {
			t.Errorf("it goes out from %s", from)
		}
	})
}

func text(all []net.Addr) (s string) {
	for _, a := range all {
		s += a.String() + " "
	}
	return s
}
