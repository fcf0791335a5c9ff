package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/skep-dev/skep/guest"
)

// addresses are those at which a function's server may listen.
type addresses struct {
	outside  string   // which the host dials
	loopback []string // which only the guest itself reaches
}

var inGuest = addresses{outside: guest.Address.String(), loopback: []string{"127.0.0.1", "::1"}}

// find returns the address at which the server accepts connections, the one that
// the host dials where it does. A server on "::" alone, without IPv4, is found at
// ::1.
func (a addresses) find(port int) (host string, ok bool) {
	if accepts(a.outside, port) {
		return a.outside, true
	}
	for _, host := range a.loopback {
		if !accepts(host, port) {
			continue
		}
		if accepts(a.outside, port) { // it began to listen everywhere between both tries
			return a.outside, true
		}
		return host, true
	}
	return "", false
}

func accepts(host string, port int) bool {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), 5*time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// relay listens where the host dials and passes on each connection to the server
// on a loopback address: many servers listen on "localhost" if nobody tells them
// otherwise. The kernel moves the bytes (splice), the agent does not see them.
// It ends with the listener.
func (a addresses) relay(host string, port int) (net.Listener, error) {
	l, err := net.Listen("tcp4", net.JoinHostPort(a.outside, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "skep-agent: relaying to the function:", err)
				time.Sleep(100 * time.Millisecond) // out of descriptors, perhaps: do not spin
				continue
			}
			go relayOne(c.(*net.TCPConn), net.JoinHostPort(host, strconv.Itoa(port)))
		}
	}()
	return l, nil
}

// relayOne joins two connections until both directions have ended. An end of one
// direction is passed on as that, and a reset as a reset.
func relayOne(client *net.TCPConn, to string) {
	conn, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		reset(client)
		return
	}
	server := conn.(*net.TCPConn)
	pass := func(to, from *net.TCPConn) {
		_, err := io.Copy(to, from)
		if err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			reset(client)
			reset(server)
		}
	}
	var both sync.WaitGroup
	both.Go(func() { pass(server, client) })
	both.Go(func() { pass(client, server) })
	both.Wait()
	client.Close()
	server.Close()
}

// reset ends a connection that may have ended already.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
