package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// dialUntil dials a guest that may not listen yet, until it does or ctx ends. A
// SYN that came too early is lost or refused, so each try is short.
func (n *Node) dialUntil(ctx context.Context, inst *instance, port int) (net.Conn, error) {
	const try, pause = 250 * time.Millisecond, 10 * time.Millisecond
	for {
		tctx, cancel := context.WithTimeout(ctx, try)
		conn, err := n.deps.Dial(tctx, inst.slot, port)
		cancel()
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, because(ctx, err)
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
func (n *Node) dialAhead(ctx context.Context, inst *instance, port int) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := &ahead{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.conn, a.err = n.deps.Dial(ctx, inst.slot, port)
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

// transports carry requests to one instance's server. Connections stay open
// between requests; each kind is made when it is first needed.
//
// It knows every connection and every dial in progress, so that close leaves
// none: the slot will be another instance's, and no byte of an old request may
// reach that.
type transports struct {
	dial   func(ctx context.Context) (net.Conn, error)
	idle   int
	ctx    context.Context // ends with close
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	h1, h2  *http.Transport
	closed  bool
	dialing sync.WaitGroup // not added to once closed
	conns   map[*conn]struct{}
}

// conn tells its transports when it is closed.
type conn struct {
	net.Conn
	of *transports
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

func (n *Node) newTransports(inst *instance, first *ahead) *transports {
	dial := func(ctx context.Context) (net.Conn, error) {
		if first != nil {
			if conn, err := first.take(ctx); err == nil {
				return conn, nil
			} else if ctx.Err() != nil {
				return nil, err
			}
		}
		return n.deps.Dial(ctx, inst.slot, inst.dep.fn.Port)
	}
	t := &transports{dial: dial, idle: inst.dep.fn.Concurrency, conns: map[*conn]struct{}{}}
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(inst.ctx))
	return t
}

// connect dials the function's server.
func (t *transports) connect(ctx context.Context) (net.Conn, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", ErrConnect, errGone)
	}
	t.dialing.Add(1)
	t.mu.Unlock()
	defer t.dialing.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	raw, err := t.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnect, err)
	}
	c := &conn{Conn: raw, of: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		raw.Close()
		return nil, fmt.Errorf("%w: %w", ErrConnect, errGone)
	}
	t.conns[c] = struct{}{}
	return c, nil
}

func (t *transports) get(h2 bool) http.RoundTripper {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &t.h1
	if h2 {
		p = &t.h2
	}
	if *p == nil {
		*p = t.make(h2)
	}
	return *p
}

func (t *transports) make(h2 bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	return &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return t.connect(ctx) },
		DisableCompression: true,
		// A client that asks whether it may send its body hears it from the function.
		ExpectContinueTimeout: time.Second,
		MaxIdleConns:          t.idle,
		MaxIdleConnsPerHost:   t.idle,
		Protocols:             &protocols,
		WriteBufferSize:       16 << 10,
		ReadBufferSize:        16 << 10,
	}
}

// close closes every connection and returns when no dial is in progress. It is
// idempotent.
func (t *transports) close() {
	t.cancel()
	t.mu.Lock()
	t.closed = true
	var open []*conn
	for c := range t.conns {
		open = append(open, c)
	}
	pools := []*http.Transport{t.h1, t.h2}
	t.mu.Unlock()
	for _, h := range pools {
		if h != nil {
			h.CloseIdleConnections()
		}
	}
	for _, c := range open {
		c.Close()
	}
	t.dialing.Wait()
}
