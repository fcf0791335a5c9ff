package gateway

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// limitListener lets so many connections be open at once. The others wait where
// the kernel keeps them. (netutil.LimitListener does the same, but the connection
// below can't be had from its own; see reset.)
func limitListener(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, places: make(chan struct{}, n), over: make(chan struct{})}
}

type limited struct {
	net.Listener
	places chan struct{}
	over   chan struct{} // closed by Close
	once   sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.over:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placed{Conn: conn, free: sync.OnceFunc(func() { <-l.places })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.over) })
	return l.Listener.Close()
}

// placed is a connection that has one of the places.
type placed struct {
	net.Conn
	free func()
}

func (c *placed) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// CloseWrite is what an upgraded connection may be asked for.
func (c *placed) CloseWrite() error { return closeWrite(c.Conn) }

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// reset makes sure that a client sees that its answer was broken off. HTTP/1.0
// has nothing but the connection's end to say where an answer ends.
func reset(r *http.Request) {
	if r.ProtoMajor != 1 || r.ProtoMinor != 0 {
		return
	}
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	if p, ok := c.(*placed); ok {
		c = p.Conn
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}
