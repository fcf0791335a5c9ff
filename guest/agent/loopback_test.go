package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	hostgroup "github.com/skep-dev/skep/internal/cgroup"
)

const askLoopbackEnv = "SKEP_TEST_ASK_LOOPBACK"

var ways = []string{"tcp4", "mapped", "tcp6", "udp4", "udp6", "sendto"}

// TestAskLoopback is who asks in TestShareLoopback: at 127.0.0.1 or ::1 and the port of its
// environment, in every way there is, and says by whom it was answered.
func TestAskLoopback(t *testing.T) {
	port := os.Getenv(askLoopbackEnv)
	if port == "" {
		t.Skip("is run by TestShareLoopback")
	}
	for _, network := range ways {
		fmt.Printf("said: %s %s\n", network, askLoopback(network, port))
	}
}

// askLoopback is the answer and who gave it.
func askLoopback(network, port string) string {
	at := net.JoinHostPort("127.0.0.1", port)
	if strings.HasSuffix(network, "6") {
		at = net.JoinHostPort("::1", port)
	}
	var c net.Conn
	var err error
	switch network {
	case "mapped":
		return askMapped(port)
	case "sendto":
		p, err := net.ListenPacket("udp4", "0.0.0.0:0")
		if err != nil {
			return err.Error()
		}
		defer p.Close()
		to, err := net.ResolveUDPAddr("udp4", at)
		if err != nil {
			return err.Error()
		}
		if _, err := p.WriteTo([]byte("ping"), to); err != nil {
			return err.Error()
		}
		b := make([]byte, 16)
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n]) + " " + from.String()
	default:
		c, err = net.Dial(network[:3], at) // a socket of IPv6 that may be of IPv4, too
	}
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	peer, err := unixPeer(c)
	if err != nil {
		return err.Error()
	}
	return talk(c) + " " + peer
}

func talk(c interface {
	Write([]byte) (int, error)
	Read([]byte) (int, error)
}) string {
	if _, err := c.Write([]byte("ping")); err != nil {
		return err.Error()
	}
	b := make([]byte, 16)
	n, err := c.Read(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

func unixPeer(c net.Conn) (peer string, err error) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return "", err
	}
	cerr := raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, err = unix.Getpeername(int(fd)); err == nil {
			peer = textOf(sa)
		}
	})
	if cerr != nil {
		return "", cerr
	}
	return peer, err
}

// askMapped connects a socket of IPv6 to ::ffff:127.0.0.1, as Java's are.
func askMapped(port string) string {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	to := &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}}
	if _, err := fmt.Sscan(port, &to.Port); err != nil {
		return err.Error()
	}
	if err := unix.Connect(fd, to); err != nil {
		return err.Error()
	}
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return err.Error()
	}
	return talk(f) + " " + textOf(sa)
}

// textOf is an address and port; one of IPv4 is as without the other's form.
func textOf(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), fmt.Sprint(a.Port))
	case *unix.SockaddrInet6:
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), fmt.Sprint(a.Port))
	}
	return fmt.Sprintf("%T", sa)
}

// What a cgroup's processes ask for at 127.0.0.1 another address answers, but where somebody
// is there who takes it; and they find it where they have asked.
func TestShareLoopback(t *testing.T) {
	root := hostgroup.Root()
	if root == "" || os.Geteuid() != 0 {
		t.Skip("no writable cgroup v2 mount; run as root: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	dir := filepath.Join(root, fmt.Sprintf("skep-test-loopback-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	gateway := [4]byte{127, 0, 0, 2} // for the gateway
	if err := shareLoopback(group, gateway); err != nil {
		t.Fatal(err)
	}

	there := answer(t, "127.0.0.2:0", "other")
	both := answer(t, "127.0.0.2:0", "other")
	answer(t, "127.0.0.1:"+both, "own")
	dual := answer(t, "127.0.0.2:0", "other")
	answer(t, "[::1]:"+dual, "own")
	const other, own = "other 127.0.0.1", "own 127.0.0.1"
	for port, want := range map[string][]string{
		there: {other, other, other, other, other, other},
		both:  {own, own, other, own, other, own},
		dual:  {other, other, "own [::1]", other, "own [::1]", other},
	} {
		for i, network := range ways {
			want[i] = fmt.Sprintf("%s %s:%s", network, want[i], port)
		}
		if got := inGroupAsk(t, group, port); got != strings.Join(want, "\n") {
			t.Errorf("at port %s:\n%s\nwant\n%s", port, got, strings.Join(want, "\n"))
		}
	}
	// Outside of the group nothing is different.
	if got := askLoopback("tcp4", there); !strings.Contains(got, "refused") {
		t.Errorf("outside: %s", got)
	}
}

func inGroupAsk(t *testing.T, group *os.File, port string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestAskLoopback$", "-test.v")
	c.Env = append(os.Environ(), askLoopbackEnv+"="+port)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	b, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	var said []string
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "said: "); ok {
			said = append(said, strings.TrimSpace(s))
		}
	}
	return strings.Join(said, "\n")
}

// answer has TCP and UDP answered at an address, and returns the port.
func answer(t *testing.T, at, with string) string {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		l.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 16)
			if _, err := c.Read(b); err == nil {
				_, _ = c.Write([]byte(with))
			}
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 16)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(with), from)
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
