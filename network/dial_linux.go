package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// impl is what a Slot keeps to itself.
type impl struct{ lease *lease }

// lease is one lending of a space. The Slot of an earlier lending cannot reach
// the guest of a later one.
type lease struct {
	slots *Slots
	space *space

	mu    sync.RWMutex  // held for reading while a connection is begun, for writing by end
	ended chan struct{} // closed by end

	serving *serving // nil but with egress "host"; set before the slot is lent
}

var errGiven = fmt.Errorf("the slot has been given back: %w", net.ErrClosed)

// end makes every Dial fail that has not begun its connection, and ends what is
// served to the guest; it reports false when that has been done before.
// Connections that were dialled are reset by the cleaning.
func (l *lease) end() bool {
	if !l.close() {
		return false
	}
	if l.serving != nil {
		l.serving.end()
	}
	return true
}

func (l *lease) close() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over() {
		return false
	}
	close(l.ended)
	return true
}

func (l *lease) over() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

func (i impl) dial(ctx context.Context, port int) (net.Conn, error) {
	l := i.lease
	if l == nil {
		return nil, errors.New("dialling a guest: the slot was not taken from a pool")
	}
	to := &net.TCPAddr{IP: l.slots.opts.Guest, Port: port}
	conn, err := l.connect(ctx, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: fmt.Errorf("in namespace %s: %w", l.space.name, err)}
	}
	return conn, nil
}

// connect does what net.Dialer would, but that only the making of the socket
// happens on a thread in the namespace, and no thread is held while waiting.
func (l *lease) connect(ctx context.Context, to *net.TCPAddr) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd := -1
	err := l.slots.in(l.space.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err == nil && l.slots.opts.mark != 0 {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, l.slots.opts.mark)
		}
		return os.NewSyscallError("socket", err)
	})
	waiting := false
	if err == nil {
		if err = l.attached(ctx, fd); err == nil {
			waiting, err = l.begin(fd, to)
		}
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		if l.over() {
			err = errGiven
		}
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if waiting {
		if err := connected(ctx, f); err != nil {
			return nil, err
		}
	}
	return net.FileConn(f) // which sets TCP_NODELAY, as for every TCPConn
}

// begin sends the SYN. waiting says that the answer is not there yet.
func (l *lease) begin(fd int, to *net.TCPAddr) (waiting bool, err error) {
	// Without the lock the slot could be cleaned and lent again between the
	// question and the call, and the SYN go to the next guest.
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.over() {
		return false, errGiven
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())})
	if err == unix.EINPROGRESS || err == unix.EINTR {
		return true, nil
	}
	return false, os.NewSyscallError("connect", err)
}

// attached waits until a VMM has attached to the tap and the kernel has noticed:
// it does that behind the VMM's back, drops what is sent before, and a SYN that
// is dropped is sent again only after a second. fd is a socket in the namespace.
func (l *lease) attached(ctx context.Context, fd int) error {
	for tries := 0; ; tries++ {
		ifr, err := unix.NewIfreq(tapName)
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr)
		}
		if err != nil {
			return fmt.Errorf("looking at %s: %w", tapName, err)
		}
		running := ifr.Uint16()&unix.IFF_RUNNING != 0
		if running && tries == 0 {
			return nil
		}
		// Also once more when it has just begun to run: the queue opens right
		// after that.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ended:
			return errGiven
		case <-time.After(500 * time.Microsecond):
		}
		if running {
			return nil
		}
	}
}

// connected waits until a connection that is being made is there.
func connected(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	err = raw.Write(func(fd uintptr) bool {
		var done bool
		done, result = progress(int(fd))
		return done
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	}
	return os.NewSyscallError("connect", result)
}

// progress reports whether the connection attempt on fd is over, and how it ended.
func progress(fd int) (done bool, err error) {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, err
	}
	if errno != 0 {
		return true, unix.Errno(errno)
	}
	// No error yet can also mean no answer yet.
	if _, err := unix.Getpeername(fd); err != nil {
		return false, nil
	}
	return true, nil
}
