package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
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
