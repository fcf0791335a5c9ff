package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Service is a TCP service of the host that guests with egress "host" reach at
// the gateway's address. It is the only thing that they reach: the daemon
// listens inside the slot's namespace and passes the bytes on, so nothing is
// routed, and the service itself may listen on loopback.
type Service struct {
	Port   int            // at the gateway's address
	Target netip.AddrPort // on the host
}

// maxServed bounds the connections of one guest to each service.
const maxServed = 64

// serving is what one lending of a slot listens on.
type serving struct {
	ctx       context.Context
	cancel    context.CancelFunc
	listeners []net.Listener
	work      sync.WaitGroup
}

// serve opens the services for a lease. When it fails nothing is left.
func (s *Slots) serve(l *lease) error {
	v := &serving{}
	v.ctx, v.cancel = context.WithCancel(context.Background()) // until the slot is given back
	for _, service := range s.opts.Services {
		address := net.JoinHostPort(s.opts.Gateway.String(), strconv.Itoa(service.Port))
		var listener net.Listener
		err := s.in(l.space.ns, func() (err error) {
			listener, err = net.Listen("tcp4", address)
			return err
		})
		if err != nil {
			v.end()
			return fmt.Errorf("offering the host's service %v in network slot %s: %w", service.Target, l.space.name, err)
		}
		v.listeners = append(v.listeners, listener)
		v.work.Go(func() { v.accept(listener, service.Target) })
	}
	l.serving = v
	return nil
}

// end closes all of it. Connections on their way are cut.
func (v *serving) end() {
	v.cancel()
	for _, l := range v.listeners {
		_ = l.Close()
	}
	v.work.Wait()
}

func (v *serving) accept(l net.Listener, target netip.AddrPort) {
	free := make(chan struct{}, maxServed)
	for {
		select {
		case free <- struct{}{}:
		case <-v.ctx.Done():
			return
		}
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: others may give some back
			<-free
			select {
			case <-time.After(100 * time.Millisecond):
			case <-v.ctx.Done():
				return
			}
			continue
		}
		v.work.Go(func() {
			defer func() { <-free }()
			v.pass(c, target)
		})
	}
}

// pass copies both ways until both ends have said all, one breaks, or the slot
// is given back.
func (v *serving) pass(guest net.Conn, target netip.AddrPort) {
	defer guest.Close()
	d := net.Dialer{Timeout: 10 * time.Second}
	host, err := d.DialContext(v.ctx, "tcp4", target.String())
	if err != nil {
		// As the guest would see it without anything between: refused or reset.
		if tcp, ok := guest.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		return
	}
	defer host.Close()
	stop := context.AfterFunc(v.ctx, func() {
		_ = guest.Close()
		_ = host.Close()
	})
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyHalf(host, guest)
	}()
	copyHalf(guest, host)
	<-done
}

// copyHalf copies one direction and then closes it; a broken one breaks the
// other too.
func copyHalf(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(*net.TCPConn); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	_ = to.Close()
	_ = from.Close()
}
