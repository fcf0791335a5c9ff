package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/process"
)

// machine is one Firecracker process.
type machine struct {
	proc    *process.Process
	api     *client
	jail    *jail
	config  vmm.Config
	timings vmm.Timings

	console *process.Log             // closed by release
	first   atomic.Pointer[net.Conn] // a connection that no request has used yet
	logDone chan struct{}            // closed when all that the process logged has been kept

	// mu is held for the whole of an operation, so that they come one at a time.
	mu         sync.Mutex
	life       vmm.Life // guarded by mu
	memoryFile string   // guarded by mu: to be removed by Kill; "" when there is none or a snapshot took it

	kill    sync.Once
	killErr error
}

var _ vmm.Machine = (*machine)(nil)

func (m *machine) PID() int              { return m.proc.PID() }
func (m *machine) Timings() vmm.Timings  { return m.timings }
func (m *machine) Done() <-chan struct{} { return m.proc.Done() }

var errEnded = errors.New("the process has ended")

// exits are Firecracker's own exit codes.
var exits = map[int]string{
	0:   "the guest shut down",
	148: "Firecracker made a system call that its filter forbids",
	149: "SIGBUS: guest memory could not be read",
	150: "Firecracker crashed (SIGSEGV)",
	151: "Firecracker was ended by SIGXFSZ: a file grew over its limit",
	152: "Firecracker refused its configuration",
	153: "Firecracker refused its arguments",
}

// Err says how the process ended.
func (m *machine) Err() error {
	err := m.proc.Err()
	if err == nil {
		return nil
	}
	<-m.logDone // at once: the process is gone
	err = m.proc.Err()
	if what, ok := exits[m.proc.ExitCode()]; ok && err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

func (m *machine) Pause(ctx context.Context) error  { return m.set(ctx, "Paused", true) }
func (m *machine) Resume(ctx context.Context) error { return m.set(ctx, "Resumed", false) }

// set stops the vCPUs or lets them run. Firecracker answers when it is so.
func (m *machine) set(ctx context.Context, state string, paused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.life.MayRun(state); err != nil {
		return err
	}
	if m.life.Paused == paused {
		return nil
	}
	if err := m.api.patch(ctx, "/vm", vmState{state}); err != nil {
		return m.explain(err)
	}
	m.life.Paused = paused
	return nil
}

// patience is for how long an exit is awaited after a request was cut off or
// refused for good, so that the error can say how Firecracker ended.
const patience = 2 * time.Second

// explain says more about a failed request: how Firecracker ended, if that is
// why, or else what it logged.
func (m *machine) explain(err error) error {
	var refusal *Error
	if errors.As(err, &refusal) {
		return err // says it all
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	select {
	case <-m.proc.Done():
		if ended := m.Err(); ended != nil {
			return ended
		}
	case <-time.After(patience):
	}
	return m.proc.Explain(err)
}

// Kill: the process first, since everything else ends with it.
func (m *machine) Kill() error {
	m.kill.Do(func() {
		m.killErr = m.proc.Kill()
		m.api.close()
		<-m.logDone
		m.mu.Lock()
		defer m.mu.Unlock()
		m.life.Spent = true
		m.killErr = errors.Join(m.killErr, m.release())
		if m.memoryFile != "" {
			if err := os.Remove(m.memoryFile); err != nil && !errors.Is(err, os.ErrNotExist) {
				m.killErr = errors.Join(m.killErr, fmt.Errorf("removing guest memory: %w", err))
			}
			m.memoryFile = ""
		}
	})
	return m.killErr
}

// release gives back all but the process.
func (m *machine) release() error {
	var err error
	if conn := m.first.Swap(nil); conn != nil {
		_ = (*conn).Close()
	}
	if m.console != nil {
		err = errors.Join(err, m.console.Close())
	}
	if m.proc == nil {
		m.jail.words.close()
	}
	return errors.Join(err, m.jail.remove())
}

// words is the pipe into which Firecracker logs. Standard output is the
// guest's console, and standard error it hardly uses.
type words struct {
	r, w *os.File // w keeps it open until the process has ended
}

func openWords(path string) (p words, err error) {
	if p.r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return p, err
	}
	if p.w, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		p.close()
	}
	return p, err
}

func (p *words) close() {
	for _, f := range []*os.File{p.r, p.w} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// lastWords is for how long the log is read after the process has ended, should
// something else have its pipe open.
const lastWords = time.Second

// copyWords keeps what the process logs until it has ended.
func (m *machine) copyWords() {
	defer close(m.logDone)
	words := &m.jail.words
	defer words.close()
	go func() {
		<-m.proc.Done()
		_ = words.r.SetReadDeadline(time.Now().Add(lastWords))
		_ = words.w.Close() // which is the end of the pipe
	}()
	_, _ = io.Copy(m.proc.Words(), words.r)
}
