// Command init is PID 1 of the testbed's host. It makes one root of the host's
// disks and the machine ready, and then runs what the driver asks for. The host
// is powered off when the driver has gone.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/testbed/remote"
)

func main() {
	if os.Getpid() != 1 {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, "testbed: the connection to the driver:", err)
		}
		return
	}
	err := setUp()
	if err == nil {
		err = superviseServer()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed: the host's init:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // its disks are thrown away
}

// superviseServer has this program again as the server, so that PID 1 can reap
// whatever loses its parent. It ends with the server.
func superviseServer() error {
	server := exec.Command("/proc/self/exe")
	server.Args[0] = "testbed"
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("waiting for processes: %w", err)
		case pid == server.Process.Pid:
			return nil
		}
	}
}

// serve answers the driver until it is gone.
func serve() error {
	path, err := port("testbed")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	conf := yamux.DefaultConfig()
	conf.EnableKeepAlive, conf.LogOutput = false, io.Discard
	conf.ConnectionWriteTimeout = 24 * time.Hour // a driver may be stopped for a while
	session, err := yamux.Server(f, conf)
	if err != nil {
		return err
	}
	for {
		conn, err := session.Accept()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		go remote.Serve(conn) // ends with the session at the latest, and so with the host
	}
}

// port finds the virtio port of that name, which may take its driver a moment.
func port(name string) (string, error) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(n))), nil
			}
		}
	}
	return "", fmt.Errorf("no virtio port has the name %s", name)
}
