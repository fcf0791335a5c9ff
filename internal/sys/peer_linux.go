package sys

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// PeerPID returns the process at the other end of a unix socket: the one that
// connected, or that listens.
func PeerPID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("asking who is at the other end of a socket: %w", err)
	}
	return int(cred.Pid), nil
}
