package agent

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// link is the connection to the host: the newest one. A restored guest still
// holds the one of the machine that was snapshotted.
type link struct {
	mu sync.Mutex // guards fd; frames are written whole under it
	fd int        // 0: none
}

var errNoLink = errors.New("no connection to the host")

// descriptor is for serve's thread alone.
func (l *link) descriptor() int {
	if l.fd == 0 {
		return -1 // poll leaves it out
	}
	return l.fd
}

// replace ends the old connection. A writer may wait in it, with the mutex: the
// shutdown wakes that one up. Only serve's thread changes fd, so reading it here
// is safe.
func (l *link) replace(fd int) {
	if l.fd != 0 {
		unix.Shutdown(l.fd, unix.SHUT_RDWR)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd != 0 {
		unix.Close(l.fd)
	}
	l.fd = fd
}

func (l *link) close() { l.replace(0) }

// frame writes one frame.
func (l *link) frame(k guest.Kind, payload []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd == 0 {
		return errNoLink
	}
	return guest.WriteFrame(writer(l.fd), k, payload)
}

func (l *link) json(k guest.Kind, v any) error {
	var b bytes.Buffer
	if err := guest.WriteJSON(&b, k, v); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd == 0 {
		return errNoLink
	}
	_, err := writer(l.fd).Write(b.Bytes())
	return err
}

// writer writes to a blocking descriptor.
type writer int

func (w writer) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Write(int(w), p[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// frames cuts what the host sends into frames.
type frames struct {
	buf  []byte
	have int
}

func newFrames() *frames { return &frames{buf: make([]byte, guest.MaxPayload+16)} }

func (f *frames) reset() { f.have = 0 }

// read reads what is there, and calls handle for each whole frame.
func (f *frames) read(fd int, handle func(guest.Kind, []byte) error) error {
	n, err := unix.Read(fd, f.buf[f.have:])
	if err == unix.EINTR || err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	f.have += n
	for {
		k, p, size, err := guest.NextFrame(f.buf[:f.have])
		if err != nil || size == 0 {
			return err
		}
		if err := handle(k, p); err != nil {
			return err
		}
		f.have = copy(f.buf, f.buf[size:f.have])
	}
}

// listen opens the agent's port.
func listen() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	addr := &unix.SockaddrInet4{Port: guest.AgentPort, Addr: [4]byte(guest.Address.To4())}
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, addr), unix.Listen(fd, 8)); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

var errStranger = errors.New("not the host")

// accept takes a connection from the host, and nobody else's.
func accept(l int) (int, error) {
	fd, from, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if p, ok := from.(*unix.SockaddrInet4); !ok || p.Addr != [4]byte(guest.Gateway.To4()) {
		return -1, errors.Join(errStranger, unix.Close(fd))
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fd, nil
}
