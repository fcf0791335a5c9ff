package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The control channel: QEMU's Machine Protocol, JSON objects one a line, over a
// socket pair of which QEMU inherits one end. Commands are answered in the
// order of their ids; events come between answers.

// maxMessage is the size of the longest message that is read. The longest that
// QEMU has reason to send here is an error of some hundred bytes.
const maxMessage = 64 << 10

// errClosed is what calls get when the channel ends: QEMU has exited.
var errClosed = errors.New("control channel closed")

// command is one command. Its id is added when it is sent.
type command struct {
	Execute   string   `json:"execute"`
	Arguments any      `json:"arguments,omitempty"`
	ID        uint64   `json:"id"`
	file      *os.File // handed over with it; nil for none
}

// message is anything that QEMU sends.
type message struct {
	Return json.RawMessage `json:"return"`
	Error  *commandError   `json:"error"`
	ID     *uint64         `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// commandError is QEMU's refusal of a command.
type commandError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *commandError) Error() string { return e.Desc }

// client is the channel's near end.
type client struct {
	conn    *net.UnixConn
	onEvent func(message) // called on the reading goroutine; must not block
	closed  chan struct{} // closed when the reading goroutine has ended

	sending sync.Mutex // held while a batch is written: ids go out in order

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan<- message // guarded by mu; nil after the end
	err     error                     // guarded by mu: why the channel ended
}

// newClient makes a channel. The far end is for the process; the caller closes it.
func newClient(onEvent func(message)) (c *client, far *os.File, err error) {
	near, far, err := socketPair("qmp")
	if err != nil {
		return nil, nil, err
	}
	c = &client{conn: near, onEvent: onEvent, closed: make(chan struct{}), pending: map[uint64]chan<- message{}}
	go c.read()
	return c, far, nil
}

// socketPair makes a connected pair; the far end is to be inherited.
func socketPair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer near.Close() // FileConn has its own copy
	conn, err := net.FileConn(near)
	if err != nil {
		_ = far.Close()
		return nil, nil, fmt.Errorf("using a socket pair: %w", err)
	}
	return conn.(*net.UnixConn), far, nil
}

func (c *client) read() {
	defer close(c.closed)
	in := bufio.NewReaderSize(c.conn, maxMessage)
	for {
		m, err := readMessage(in)
		if err != nil {
			c.end(err)
			return
		}
		c.dispatch(m)
	}
}

// readMessage reads one line. in's buffer is the limit of its length.
func readMessage(in *bufio.Reader) (message, error) {
	var m message
	line, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return m, fmt.Errorf("a message is longer than %d bytes", in.Size())
	case err != nil: // EOF or a reset: either is the far end's close
		return m, errClosed
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &m); err != nil {
		return m, fmt.Errorf("reading a message: %w", err)
	}
	return m, nil
}

func (c *client) dispatch(m message) {
	switch {
	case m.Event != "":
		c.onEvent(m)
	case m.ID != nil:
		c.mu.Lock()
		answer := c.pending[*m.ID]
		delete(c.pending, *m.ID)
		c.mu.Unlock()
		if answer != nil {
			answer <- m // has room: one answer per id
		}
	}
}

// end fails all calls, present and future.
func (c *client) end(err error) {
	c.mu.Lock()
	c.err = err
	for _, answer := range c.pending {
		close(answer)
	}
	c.pending = nil
	c.mu.Unlock()
	_ = c.conn.Close() // QEMU's own writes must not block on a reader that is gone
}

// close ends the channel and waits for its goroutine. It is idempotent.
func (c *client) close() {
	_ = c.conn.Close()
	<-c.closed
}

// do sends commands all at once and waits for their answers in order. It
// returns the first error; the commands after it may have been carried out.
func (c *client) do(ctx context.Context, commands ...command) ([]json.RawMessage, error) {
	answers, err := c.send(commands)
	if err != nil {
		return nil, err
	}
	results := make([]json.RawMessage, len(commands))
	for i, answer := range answers {
		select {
		case m, ok := <-answer:
			if !ok {
				return nil, fmt.Errorf("%s: %w", commands[i].Execute, c.why())
			}
			if m.Error != nil {
				return nil, fmt.Errorf("%s: %w", commands[i].Execute, m.Error)
			}
			results[i] = m.Return
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", commands[i].Execute, context.Cause(ctx))
		}
	}
	return results, nil
}

func (c *client) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// send writes commands in as few writes as possible: a file goes with the
// first byte of its command's own write.
func (c *client) send(commands []command) ([]<-chan message, error) {
	c.sending.Lock()
	defer c.sending.Unlock()
	answers, lines := make([]<-chan message, len(commands)), make([][]byte, len(commands))
	for i := range commands { // all before the first write: an answer finds its call waiting
		answer, id, err := c.register()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", commands[i].Execute, err)
		}
		commands[i].ID, answers[i] = id, answer
		if lines[i], err = json.Marshal(commands[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", commands[i].Execute, err)
		}
		lines[i] = append(lines[i], '\n')
	}
	var out []byte
	for i, line := range lines {
		if f := commands[i].file; f != nil {
			if err := c.write(out, nil); err != nil {
				return nil, err
			}
			if err := c.write(line, f); err != nil {
				return nil, err
			}
			out = out[:0]
			continue
		}
		out = append(out, line...)
	}
	return answers, c.write(out, nil)
}

func (c *client) register() (<-chan message, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		return nil, 0, c.err
	}
	c.nextID++
	answer := make(chan message, 1)
	c.pending[c.nextID] = answer
	return answer, c.nextID, nil
}

func (c *client) write(b []byte, f *os.File) error {
	if len(b) == 0 {
		return nil
	}
	var err error
	if f == nil {
		_, err = c.conn.Write(b)
	} else {
		err = c.writeFile(b, f)
	}
	if err != nil {
		return errClosed
	}
	return nil
}

// writeFile sends b with the descriptor of f.
func (c *client) writeFile(b []byte, f *os.File) error {
	rights := unix.UnixRights(int(f.Fd()))
	n, _, err := c.conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.conn.Write(b[n:])
	}
	return err
}
