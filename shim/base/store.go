package base

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/shim/base/ready"
)

const (
	// pullLimit bounds how long a start that could boot waits for the object store.
	pullLimit = 20 * time.Second
	// pullRetry is how long after the object store did not answer nobody asks it again.
	pullRetry = 30 * time.Second
	maxAnswer = 64 << 10
)

// Fetches says that there is an object store, in which a snapshot may be that is to be made here.
func (r *Ready) Fetches() bool { return r.host.cfg.StoreBucket != "" }

// Fetch looks for the snapshot in the object store, and has it be there if it is found. Else the error says why
// it is not, and it is still to be made.
func (r *Ready) Fetch(ctx context.Context) error {
	h := r.host
	note := h.dir(".store")
	if st, err := os.Stat(note); err == nil && time.Since(st.ModTime()) < pullRetry {
		b, _ := os.ReadFile(note)
		return fmt.Errorf("the object store is not asked again before %v: %s", st.ModTime().Add(pullRetry).Format(time.TimeOnly), b)
	}
	asked, cancel := context.WithTimeoutCause(ctx, pullLimit, fmt.Errorf("the object store took longer than %v", pullLimit))
	defer cancel()
	want := h.wantReady(r.spec, r.key)
	a, err := h.askStore(asked, want)
	if err != nil {
		err = cause.Because(asked, err)
	} else if a.Snapshot == "" {
		err = errors.New(a.Why)
	}
	if (err != nil && a.Why == "" || a.Failed) && ctx.Err() == nil {
		if werr := os.WriteFile(note, []byte(err.Error()), 0o600); werr != nil {
			h.log.Warn("noting that the object store does not answer", "error", werr)
		}
	}
	if err != nil {
		return err
	}
	snap, err := h.snaps.Acquire(ctx, a.Snapshot, want)
	if err != nil {
		return fmt.Errorf("of the object store: %w", err)
	}
	r.snap = snap
	if err := r.claim.Release(); err != nil {
		h.log.Warn("releasing a claim", "error", err)
	}
	return nil
}

// askStore has the program of the object store fetch a snapshot.
func (h *Host) askStore(ctx context.Context, want any) (a ready.Answer, err error) {
	in, err := json.Marshal(want)
	if err != nil {
		return a, err
	}
	program, err := storeProgram()
	if err != nil {
		return a, err
	}
	cmd := exec.CommandContext(ctx, program, "pull")
	var out, said capped
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &said
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &a)
	}
	if err != nil {
		return a, fmt.Errorf("%s pull: %w %s", ready.Program, err, strings.TrimSpace(said.String()))
	}
	return a, nil
}

// storeProgram is beside this one.
func storeProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), ready.Program)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: `skep containerd install` puts it there", err)
	}
	return path, nil
}

// capped keeps what comes first.
type capped struct{ bytes.Buffer }

var _ io.Writer = (*capped)(nil)

func (c *capped) Write(p []byte) (int, error) {
	if room := maxAnswer - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Push has ready snapshots be pushed that the object store has not, by a process that nobody waits for, and
// that goes on when this one ends.
func (h *Host) Push() error {
	if h.cfg.StoreBucket == "" || !h.cfg.StorePush {
		return nil
	}
	due, err := ready.Due(h.cfg.DataDir)
	if err != nil || len(due) == 0 {
		return err
	}
	program, err := storeProgram()
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "push")
	cmd.Dir = "/" // not in a bundle, which is about to be removed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("pushing snapshots to the object store: %w", err)
	}
	go func() { _ = cmd.Wait() }() // what it has to say is in its log
	return nil
}
