package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Socket is where containerd is asked.
const Socket = "/run/containerd/containerd.sock"

// restartLimit bounds the time in which a supervisor starts containerd again. Debian's
// unit waits for five seconds.
const restartLimit = time.Minute

// Restart ends the containerd that answers at Socket, which whoever supervises it
// starts again: systemd, where its unit says Restart=always, as distributions' do. It
// returns when the new one answers. Containers go on meanwhile.
func (h Host) Restart(ctx context.Context) error {
	was, err := h.answering(ctx)
	if err != nil {
		return fmt.Errorf("restarting containerd: %w", err)
	}
	if err := syscall.Kill(was, syscall.SIGTERM); err != nil {
		return fmt.Errorf("restarting containerd: ending process %d: %w", was, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, restartLimit, fmt.Errorf("containerd was ended, and is not back after %v: nobody supervises it, and it has to be started by hand", restartLimit))
	defer cancel()
	for {
		now, err := h.answering(ctx)
		if err == nil && now != was {
			return h.Pend(false)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// pendingFile is there from before a change of the configuration until containerd was
// restarted: whoever makes the change may be killed in between.
const pendingFile = "restart.pending"

// Pend notes that containerd has to be restarted, or not any more.
func (h Host) Pend(restart bool) error {
	h = h.withDefaults()
	path := h.path(filepath.Join(h.DataDir, pendingFile))
	if !restart {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		_ = os.Remove(filepath.Dir(path)) // if nothing else is in it, as after Uninstall
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, nil, 0o644)
}

// Pending says whether that was noted.
func (h Host) Pending() bool {
	h = h.withDefaults()
	return exists(h.path(filepath.Join(h.DataDir, pendingFile)))
}

// answering is the process that listens at the socket.
func (h Host) answering(ctx context.Context) (pid int, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", h.path(Socket))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return 0, errors.Join(cerr, err)
	}
	if peer.Pid <= 0 {
		return 0, errors.New("the process that answers is in another PID namespace: this one has to see the host's processes (hostPID)")
	}
	return int(peer.Pid), nil
}
