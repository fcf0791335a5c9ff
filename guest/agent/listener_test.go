package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// here stands for the guest: of this machine's loopback addresses one is the
// outside.
var here = addresses{outside: "127.0.0.2", loopback: []string{"127.0.0.1", "::1"}}

func listen(t *testing.T, network, address string, only6 bool) (*net.TCPListener, int) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			if only6 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			}
		}), err)
	}}
	l, err := config.Listen(context.Background(), network, address)
	if err != nil && network == "tcp6" {
		t.Skipf("needs IPv6 on the loopback device: %v; to run this test: sysctl net.ipv6.conf.lo.disable_ipv6=0", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), l.Addr().(*net.TCPAddr).Port
}

// TestListeners finds servers wherever they listen, and makes them answer at the
// outside.
func TestListeners(t *testing.T) {
	for _, c := range []struct {
		name, network, address string
		only6                  bool
		want                   string
	}{
		{"everywhere", "tcp4", "0.0.0.0:0", false, "127.0.0.2"},
		{"IPv6 with IPv4", "tcp", "[::]:0", false, "127.0.0.2"},
		{"outside only", "tcp4", "127.0.0.2:0", false, "127.0.0.2"},
		{"loopback", "tcp4", "127.0.0.1:0", false, "127.0.0.1"},
		{"IPv6 loopback", "tcp6", "[::1]:0", false, "::1"},
		{"IPv6 without IPv4", "tcp6", "[::]:0", true, "::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, port := listen(t, c.network, c.address, c.only6)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
			server.Listener.Close()
			server.Listener = l
			server.Start()
			defer server.Close()
			host, ok := here.find(port)
			if !ok || host != c.want {
				t.Fatalf("it is found at %q, %v; want %s", host, ok, c.want)
			}
			if host != here.outside {
				relay, err := here.relay(host, port)
				if err != nil {
					t.Fatal(err)
				}
				defer relay.Close()
			}
			if status, err := request(here.outside, port, "POST", "/", strings.Repeat("x", 1<<20), hookLimit); status != 200 {
				t.Errorf("from outside: %d, %v", status, err)
			}
		})
	}
	l, port := listen(t, "tcp4", "127.0.0.1:0", false)
	l.Close()
	if host, ok := here.find(port); ok {
		t.Errorf("nobody listens, and is found at %s", host)
	}
}

// TestRelayPassesOnEnds of each direction, and resets.
func TestRelayPassesOnEnds(t *testing.T) {
	l, port := listen(t, "tcp4", "127.0.0.1:0", false)
	relay, err := here.relay("127.0.0.1", port)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	join := func() (client, server *net.TCPConn) {
		t.Helper()
		c, err := net.Dial("tcp4", relay.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); s.Close() })
		return c.(*net.TCPConn), s
	}
	client, server := join()
	io.WriteString(client, "question")
	client.CloseWrite()
	if b, err := io.ReadAll(server); err != nil || string(b) != "question" {
		t.Errorf("the server reads %q, %v", b, err)
	}
	io.WriteString(server, "answer")
	server.Close()
	if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
		t.Errorf("the client reads %q, %v", b, err)
	}
	client, server = join()
	reset(server)
	if _, err := io.ReadAll(client); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after a reset the client reads %v", err)
	}
	l.Close()
	c, err := net.Dial("tcp4", relay.Addr().String())
	if err == nil { // else the reset has come before the dial had returned
		defer c.Close()
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("without a server the client gets %v", err)
	}
}
