package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// streams are a process's standard ones.
type streams struct {
	child []*os.File // its ends: stdin, stdout, stderr
	stdin *os.File   // nil: it has none
	out   []outlet
	once  sync.Once // for closeOwn
}

// outlet is where something comes out of the process.
type outlet struct {
	kind guest.Kind
	file *os.File
}

// openStreams makes pipes, or a terminal.
func openStreams(root string, spec *guest.Process) (*streams, error) {
	if spec.TTY {
		return openTerminal(root, spec)
	}
	s := &streams{}
	var err error
	if spec.Stdin {
		var r *os.File
		if r, s.stdin, err = os.Pipe(); err != nil {
			return nil, err
		}
		s.child = append(s.child, r)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		s.child = append(s.child, null)
	}
	for _, k := range []guest.Kind{guest.KindStdout, guest.KindStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			s.closeChild()
			return nil, errors.Join(err, s.closeOwn())
		}
		s.child = append(s.child, w)
		s.out = append(s.out, outlet{k, r})
	}
	return s, nil
}

// openTerminal makes a terminal in the function's /dev/pts.
func openTerminal(root string, spec *guest.Process) (*streams, error) {
	master, err := openAt(root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("making a terminal: %w", err)
	}
	s := &streams{stdin: master, out: []outlet{{guest.KindStdout, master}}}
	err = control(master, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		// Sound: the argument is flags, and the result a descriptor.
		slave, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if e != 0 {
			return e
		}
		f := os.NewFile(slave, "terminal")
		s.child = []*os.File{f, f, f}
		if spec.Console {
			if err := makeConsole(root, f); err != nil {
				return err
			}
		}
		return setSize(fd, spec.Rows, spec.Cols)
	})
	if err != nil {
		s.closeChild()
		return nil, errors.Join(fmt.Errorf("making a terminal: %w", err), s.closeOwn())
	}
	return s, nil
}

// makeConsole mounts a terminal as the root's /dev/console, over an earlier one.
func makeConsole(root string, terminal *os.File) error {
	dir, err := dirInRoot(root, "/dev")
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), "console", unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return fmt.Errorf("making /dev/console: %w", err)
	}
	console := os.NewFile(uintptr(fd), "console")
	defer console.Close()
	if err := unix.Mount(inFD(terminal), inFD(console), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("making the terminal /dev/console: %w", err)
	}
	return nil
}

// control calls f with the file's descriptor, which stays one that does not block.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
}

func setSize(fd int, rows, cols uint16) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}

func (p *process) resize(rows, cols uint16) error {
	if !p.spec.TTY {
		return nil
	}
	_ = control(p.stdin, func(fd int) error { return setSize(fd, rows, cols) }) // else it has ended
	return nil
}

// closeChild closes the process's ends, which it has itself by then.
func (s *streams) closeChild() {
	for _, f := range s.child {
		f.Close() // a terminal three times
	}
	s.child = nil
}

// closeOwn closes the agent's ends. It is idempotent.
func (s *streams) closeOwn() error {
	s.once.Do(func() {
		if s.stdin != nil {
			s.stdin.Close()
		}
		for _, o := range s.out {
			o.file.Close()
		}
	})
	return nil
}

// pump passes on what comes out, as fast as the host takes it, until the end or
// until the process has ended and nothing of it is left.
func (p *process) pump(o outlet) {
	b := make([]byte, guest.HeadLen+passBytes)
	read := o.file.Read
	for {
		n, err := read(b[guest.HeadLen:])
		if n > 0 && !p.deliver(o.kind, b[:guest.HeadLen+n]) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // it has ended
			read = rest(o.file)
			continue
		}
		if err != nil { // EIO: a terminal that nobody has any more
			return
		}
	}
}

// rest reads what there is, and does not wait for more.
func rest(f *os.File) func([]byte) (int, error) {
	_ = f.SetReadDeadline(time.Time{})
	return func(b []byte) (n int, err error) {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		var e error
		err = raw.Read(func(fd uintptr) bool {
			n, e = unix.Read(int(fd), b)
			return true
		})
		if err = errors.Join(err, e); err == nil && n <= 0 {
			err = io.EOF
		}
		return max(n, 0), err
	}
}

// outputRoom is for how many more bytes of stdout and stderr the host has room.
type outputRoom [2]int

func newOutputRoom(ended bool) outputRoom {
	n := guest.OutputWindow
	if ended {
		n += guest.MaxRest
	}
	return outputRoom{n, n}
}

func (r *outputRoom) add(n int) { r[0], r[1] = r[0]+n, r[1]+n }

func (r *outputRoom) of(k guest.Kind) *int { return &r[k-guest.KindStdout] }

// grow notes that the host at a connection has room for more.
func (p *process) grow(c *execConn, k guest.Kind, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == c {
		*p.room.of(k) += n
		p.changed.Broadcast()
	}
}

// deliver writes a frame to whoever is attached, and waits until somebody is who has
// room for it; false: nobody will. What one connection did not take whole, the next gets.
func (p *process) deliver(k guest.Kind, b []byte) bool {
	for len(b) > guest.HeadLen {
		c, n := p.takeRoom(k, len(b)-guest.HeadLen)
		if c == nil {
			return false
		}
		if c.filled(k, b[:guest.HeadLen+n]) == nil {
			b = b[n:] // the next frame's head goes over what was sent
			continue
		}
		p.lost(c)
	}
	return true
}

// takeRoom waits for a host that has room for some of that many bytes. A process that
// has ended can only have left more than that by others, which go on writing: they are
// not waited for.
func (p *process) takeRoom(k guest.Kind, want int) (*execConn, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.left && (p.conn == nil || *p.room.of(k) == 0 && p.exit == nil) {
		p.changed.Wait()
	}
	if p.left {
		return nil, 0
	}
	n := min(want, *p.room.of(k))
	if n == 0 {
		return nil, 0
	}
	*p.room.of(k) -= n
	return p.conn, n
}

// input is a piece of stdin, and whom to tell when it was taken.
type input struct {
	from *execConn
	data []byte
}

// input takes bytes for stdin. It does not wait: no more may be sent than there is
// room for.
func (p *process) input(c *execConn, b []byte) error {
	p.mu.Lock()
	if p.exit != nil { // the host is told soon
		p.mu.Unlock()
		return nil
	}
	if p.stdin == nil || p.eof {
		p.mu.Unlock()
		return c.frame(guest.KindTaken, guest.EncodeCount(len(b)))
	}
	defer p.mu.Unlock()
	waiting := len(b)
	for _, in := range p.queue {
		if in.from == c {
			waiting += len(in.data)
		}
	}
	if waiting > guest.StdinWindow {
		return fmt.Errorf("%d bytes of stdin wait: at most %d may", waiting, guest.StdinWindow)
	}
	p.queue = append(p.queue, input{c, append([]byte(nil), b...)})
	p.changed.Broadcast()
	return nil
}

// feed passes stdin on, as fast as the process reads. When it does not read any
// more, the rest is taken and dropped.
func (p *process) feed() {
	deaf := false
	for {
		in, ok := p.nextInput()
		if !ok {
			break
		}
		if !deaf {
			_, err := p.stdin.Write(in.data)
			deaf = err != nil
		}
		_ = in.from.frame(guest.KindTaken, guest.EncodeCount(len(in.data))) // else it has gone
	}
	if !p.spec.TTY { // which is where its output comes from, too
		p.stdin.Close()
	}
}

func (p *process) nextInput() (input, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) == 0 && !p.eof && p.exit == nil && !p.left {
		p.changed.Wait()
	}
	if len(p.queue) == 0 || p.exit != nil || p.left {
		p.queue = nil
		return input{}, false
	}
	in := p.queue[0]
	p.queue = p.queue[1:]
	return in, true
}
