// Command init makes the testbed's host ready. As PID 1 it makes one root of the
// host's disks and becomes systemd, which starts it again as a service: that runs
// what the driver asks for. The host is powered off when the driver has gone.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
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
		return // and so the host ends: see unit
	}
	err := setUp()
	if err == nil {
		err = becomeSystemd()
	}
	fmt.Fprintln(os.Stderr, "testbed: the host's init:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // its disks are thrown away
}

// server is this program as the service finds it.
const server = "/run/testbed/server"

// unit is the service, and all that systemd starts: the rest of what a host's
// start is made of takes a minute under emulation, and setUp has done what counts.
// Cgroups are not delegated to it: tests meet a systemd that minds its own.
const unit = `[Unit]
Description=what the driver of the testbed asks for
DefaultDependencies=no
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
ExecStart=` + server + `
StandardOutput=tty
StandardError=tty
PassEnvironment=PATH HOME LANG TERM
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=1048576
`

// becomeSystemd starts the service by way of systemd, and returns only to say what
// went wrong.
func becomeSystemd() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	for path, text := range map[string]string{server: string(self), "/run/systemd/system/testbed.service": unit} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			return err
		}
	}
	const systemd = "/lib/systemd/systemd"
	return &os.PathError{Op: "exec", Path: systemd, Err: unix.Exec(systemd, []string{systemd, "--unit=testbed.service"}, os.Environ())}
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
