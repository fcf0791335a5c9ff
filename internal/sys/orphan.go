package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// EndWithStdin ends this process as soon as nobody is left who could write to its
// standard input, a pipe: who has started it is dead. A process whose threads wait for
// memory that the other served would wait for ever.
func EndWithStdin() {
	go func() {
		for {
			// Without events only the end is waited for; nothing is read.
			fds := []unix.PollFd{{Fd: 0}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
			if fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
				os.Exit(1)
			}
		}
	}()
}
