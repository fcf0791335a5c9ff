package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/cause"
)

// dialUntil dials a guest that may not listen yet, until it does or ctx ends. A
// SYN that came too early is lost or refused, so each try is short.
func (v *VM) dialUntil(ctx context.Context, port int) (net.Conn, error) {
	const try, pause = 250 * time.Millisecond, 10 * time.Millisecond
	for {
		tctx, cancel := context.WithTimeout(ctx, try)
		conn, err := v.spec.Dial(tctx, port)
		cancel()
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, cause.Because(ctx, err)
		case <-time.After(pause):
		}
	}
}

// ahead is a connection that is dialled before it is needed.
type ahead struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex // guards conn and taken, once done is closed
	conn  net.Conn
	err   error
	taken bool
}

var errTaken = errors.New("the connection was given out already")

// dialAhead begins to dial; abandon must be called in the end.
func dialAhead(dial func(ctx context.Context, port int) (net.Conn, error), port int) *ahead {
	ctx, cancel := context.WithCancel(context.Background())
	a := &ahead{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.conn, a.err = dial(ctx, port)
	}()
	return a
}

// take waits for the connection and gives it out, once.
func (a *ahead) take(ctx context.Context) (net.Conn, error) {
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken {
		return nil, errTaken
	}
	a.taken = true
	return a.conn, a.err
}

// abandon closes the connection if nobody took it. It is idempotent.
func (a *ahead) abandon() {
	a.cancel()
	if conn, err := a.take(context.Background()); err == nil {
		conn.Close()
	}
}

// connections lead into one microVM, most of them to its server. Those that carry
// requests stay open in between; each kind of them is made when it is first needed.
//
// It knows every connection and every dial in progress, so that close leaves
// none: the slot will be another instance's, and no byte of an old request may
// reach that.
type connections struct {
	dial   func(ctx context.Context, port int) (net.Conn, error)
	port   int             // of the server
	first  *ahead          // the first one to it; nil: none was dialled ahead
	idle   int             // of each kind that stay open
	ctx    context.Context // ends with close
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	h1, h2  *http.Transport
	closed  bool
	dialing sync.WaitGroup // not added to once closed
	conns   map[*conn]struct{}
}

// conn tells its connections when it is closed.
type conn struct {
	net.Conn
	of *connections
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite says that no more is sent, on an upgraded connection.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// errGone is what a request gets that comes after its instance's end.
var errGone = errors.New("the instance has ended")

func (v *VM) newConnections(first *ahead) *connections {
	c := &connections{dial: v.spec.Dial, port: v.spec.Server.Port, first: first, idle: v.spec.Server.Connections, conns: map[*conn]struct{}{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Dial opens a connection to the guest's port. It is closed with the microVM at
// the latest, and before a snapshot.
func (v *VM) Dial(ctx context.Context, port int) (net.Conn, error) { return v.conns.open(ctx, port) }

// Transport sends requests to the microVM's server over connections of its own; h2
// selects HTTP/2 with prior knowledge (gRPC).
func (v *VM) Transport(h2 bool) http.RoundTripper { return v.conns.transport(h2) }

// open wraps ErrConnect when it does not reach the server.
func (c *connections) open(ctx context.Context, port int) (net.Conn, error) {
	conn, err := c.openAny(ctx, port)
	if err != nil && port == c.port {
		err = fmt.Errorf("%w: %w", ErrConnect, err)
	}
	return conn, err
}

func (c *connections) openAny(ctx context.Context, port int) (net.Conn, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errGone
	}
	c.dialing.Add(1)
	c.mu.Unlock()
	defer c.dialing.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	raw, err := c.reach(ctx, port)
	if err != nil {
		return nil, err
	}
	n := &conn{Conn: raw, of: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		raw.Close()
		return nil, errGone
	}
	c.conns[n] = struct{}{}
	return n, nil
}

func (c *connections) reach(ctx context.Context, port int) (net.Conn, error) {
	if c.first != nil && port == c.port {
		if conn, err := c.first.take(ctx); err == nil {
			return conn, nil
		} else if ctx.Err() != nil {
			return nil, err
		}
	}
	return c.dial(ctx, port)
}

func (c *connections) transport(h2 bool) http.RoundTripper {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.h1
	if h2 {
		p = &c.h2
	}
	if *p == nil {
		*p = c.make(h2)
	}
	return *p
}

func (c *connections) make(h2 bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	return &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.open(ctx, c.port) },
		DisableCompression: true,
		// A client that asks whether it may send its body hears it from the function.
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          c.idle,
		MaxIdleConnsPerHost:   c.idle,
		Protocols:             &protocols,
		WriteBufferSize:       16 << 10,
		ReadBufferSize:        16 << 10,
	}
}

// close closes every connection and returns when no dial is in progress. It is
// idempotent.
func (c *connections) close() {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	var open []*conn
	for n := range c.conns {
		open = append(open, n)
	}
	pools := []*http.Transport{c.h1, c.h2}
	c.mu.Unlock()
	for _, h := range pools {
		if h != nil {
			h.CloseIdleConnections()
		}
	}
	for _, n := range open {
		n.Close()
	}
	c.dialing.Wait()
}
