package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/process"
)

// machine is one QEMU process.
type machine struct {
	proc    *process.Process
	qmp     *client
	config  vmm.Config
	host    vmm.Host
	timings vmm.Timings

	console     net.Conn
	consoleDone chan struct{} // closed when the console's goroutine has ended

	// migration passes on the status of the one migration that a machine sees,
	// in or out. It has room for all that one emits.
	migration chan string

	// mu is held for the whole of an operation, so that they come one at a time.
	mu         sync.Mutex
	life       vmm.Life // guarded by mu
	memoryFile string   // guarded by mu: to be removed by Kill; "" when there is none or a snapshot took it

	eventMu sync.Mutex
	ended   string // guarded by eventMu: why the guest shut down, "" if it did not

	kill    sync.Once
	killErr error
}

var _ vmm.Machine = (*machine)(nil)

// onEvent is called on the reading goroutine.
func (m *machine) onEvent(msg message) {
	var data struct {
		Status string `json:"status"`
		Reason string `json:"reason"`
	}
	if len(msg.Data) > 0 && json.Unmarshal(msg.Data, &data) != nil {
		return
	}
	switch msg.Event {
	case "MIGRATION":
		select {
		case m.migration <- data.Status:
		default:
		}
	case "SHUTDOWN":
		m.eventMu.Lock()
		m.ended = data.Reason
		m.eventMu.Unlock()
	}
}

// copyConsole keeps the newest part of the guest's console until QEMU ends.
func (m *machine) copyConsole(log *process.Log) {
	defer close(m.consoleDone)
	defer log.Close()
	_, _ = io.Copy(log, m.console)
}

func (m *machine) PID() int              { return m.proc.PID() }
func (m *machine) Timings() vmm.Timings  { return m.timings }
func (m *machine) Done() <-chan struct{} { return m.proc.Done() }

// Err prefers what QEMU said of the guest to how the process ended.
func (m *machine) Err() error {
	err := m.proc.Err()
	if err == nil {
		return nil
	}
	<-m.qmp.closed // at once: the process is gone; all its events have been read then
	m.eventMu.Lock()
	defer m.eventMu.Unlock()
	if m.ended != "" {
		return fmt.Errorf("the guest shut down (%s): %w", m.ended, err)
	}
	return err
}

func (m *machine) Pause(ctx context.Context) error {
	return m.run(ctx, "stop", true)
}

func (m *machine) Resume(ctx context.Context) error {
	return m.run(ctx, "cont", false)
}

// run carries out a command after which the vCPUs are paused, or not. QEMU
// answers both when it is so.
func (m *machine) run(ctx context.Context, name string, paused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.life.MayRun(name); err != nil {
		return err
	}
	if m.life.Paused == paused {
		return nil
	}
	if _, err := m.qmp.do(ctx, command{Execute: name}); err != nil {
		return m.explain(err)
	}
	m.life.Paused = paused
	return nil
}

// patience is for how long an exit that the control channel has told of is
// awaited, so that the error can say how QEMU ended.
const patience = 2 * time.Second

// explain says more about a failed call: how QEMU ended, if that is why, or
// else what it wrote to stderr.
func (m *machine) explain(err error) error {
	if !errors.Is(err, errClosed) {
		return m.proc.Explain(err)
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

// migrated waits until the migration in progress has ended.
func (m *machine) migrated(ctx context.Context) error {
	for {
		select {
		case status := <-m.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return m.explain(fmt.Errorf("the migration %s%s", status, m.migrationError(ctx)))
			}
		case <-m.qmp.closed:
			return m.explain(m.qmp.why())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// migrationError asks why; the answer is more text for an error.
func (m *machine) migrationError(ctx context.Context) string {
	answers, err := m.qmp.do(ctx, command{Execute: "query-migrate"})
	if err != nil {
		return ""
	}
	var info struct {
		Desc string `json:"error-desc"`
	}
	if json.Unmarshal(answers[0], &info) != nil || info.Desc == "" {
		return ""
	}
	return ": " + info.Desc
}

// Kill: the process first, since everything else ends with it.
func (m *machine) Kill() error {
	m.kill.Do(func() {
		m.killErr = m.proc.Kill()
		m.qmp.close()
		_ = m.console.Close()
		<-m.consoleDone
		m.mu.Lock()
		defer m.mu.Unlock()
		m.life.Spent = true
		m.killErr = errors.Join(m.killErr, removeRoot(m.host))
		if m.memoryFile != "" {
			if err := os.Remove(m.memoryFile); err != nil && !errors.Is(err, os.ErrNotExist) {
				m.killErr = errors.Join(m.killErr, fmt.Errorf("removing guest memory: %w", err))
			}
			m.memoryFile = ""
		}
	})
	return m.killErr
}
