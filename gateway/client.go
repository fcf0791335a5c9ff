package gateway

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// requestBody is what the client sends. It remembers what went wrong with that,
// so that nobody else is blamed.
type requestBody struct {
	io.ReadCloser
	x      *exchange
	under  sync.Mutex // held by a read
	whole  atomic.Bool
	failed atomic.Pointer[error]
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.under.Lock()
	defer b.under.Unlock()
	l := &b.x.limits
	defer l.reading.Store(false)
	if err := l.begin(&l.reading); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.x.bytesIn.Add(int64(n))
		l.touch()
	}
	switch {
	case err == io.EOF:
		b.whole.Store(true)
	case err != nil:
		b.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// err says what was wrong with what the client sent.
func (b *requestBody) err() error {
	if b == nil {
		return nil
	}
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// settle returns when no read is under way.
func (b *requestBody) settle() {
	b.under.Lock()
	b.under.Unlock() //lint:ignore SA2001 whoever reads has it
}

// halfRead says that the client may send more.
func (b *requestBody) halfRead() bool { return b != nil && !b.whole.Load() }

// responseWriter is the way to the client. It counts and flushes, and remembers
// what went wrong.
type responseWriter struct {
	http.ResponseWriter
	x *exchange
}

// send does what writes to the client, within the limits.
func (x *exchange) send(write func() error) error {
	l := &x.limits
	defer l.writing.Store(false)
	err := l.begin(&l.writing)
	if err == nil {
		err = write()
	}
	if err != nil {
		x.sendErr.CompareAndSwap(nil, &err)
		return err
	}
	l.touch()
	return nil
}

func (w *responseWriter) WriteHeader(status int) {
	switch {
	case status == http.StatusContinue:
		return // the server says it by itself when the body is asked for, and once is enough
	case status >= 200 || status == http.StatusSwitchingProtocols:
		w.x.rec.Status = status
		w.ResponseWriter.WriteHeader(status)
	default:
		w.x.send(func() error { w.ResponseWriter.WriteHeader(status); return nil })
	}
}

func (w *responseWriter) Write(p []byte) (n int, err error) {
	err = w.x.send(func() error {
		n, err = w.ResponseWriter.Write(p)
		w.x.bytesOut.Add(int64(n))
		if err == nil && w.x.bytesOut.Load() < w.x.length {
			err = w.x.client.Flush() // the rest may take its time
		}
		return err
	})
	return n, err
}

// FlushError is what http.ResponseController calls.
func (w *responseWriter) FlushError() error { return w.x.send(w.x.client.Flush) }

// Hijack gives the connection to one that was upgraded.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.x.client.Hijack()
	if err != nil {
		return nil, nil, err
	}
	t := &tunnel{Conn: conn, x: w.x}
	if n := rw.Reader.Buffered(); n > 0 {
		b, _ := rw.Reader.Peek(n)
		t.early = append(t.early, b...)
	}
	w.x.tunnel = t
	return t, rw, nil
}

// Unwrap lets http.ResponseController set deadlines and read in full duplex.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// tunnel is the client's side of an upgraded connection.
type tunnel struct {
	net.Conn
	x     *exchange
	early []byte // came with the request, before the upgrade was answered
}

func (t *tunnel) Read(p []byte) (n int, err error) {
	l := &t.x.limits
	defer l.reading.Store(false)
	if err := l.begin(&l.reading); err != nil {
		return 0, err
	}
	if len(t.early) > 0 {
		n = copy(p, t.early)
		t.early = t.early[n:]
	} else {
		n, err = t.Conn.Read(p)
	}
	if n > 0 {
		t.x.bytesIn.Add(int64(n))
		l.touch()
	}
	if err != nil && err != io.EOF {
		t.x.sendErr.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (t *tunnel) Write(p []byte) (n int, err error) {
	err = t.x.send(func() error {
		n, err = t.Conn.Write(p)
		t.x.bytesOut.Add(int64(n))
		return err
	})
	return n, err
}

// CloseWrite tells the client that the function sends no more; the client may.
func (t *tunnel) CloseWrite() error { return closeWrite(t.Conn) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// answerBody is what the function sends. It remembers what went wrong with that.
type answerBody struct {
	io.ReadCloser
	x *exchange
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.x.limits.touch()
	}
	if err != nil && err != io.EOF {
		b.x.answerErr = err
	}
	return n, err
}
