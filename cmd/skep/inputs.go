package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
)

// inputsPort is where functions see the S3 server with their inputs.
const inputsPort = 7090

// startInputs starts the S3 server that some of the functions fetch their inputs
// from, at a port of its own, and has the daemon that is started next pass it on.
func (c *cli) startInputs(ctx context.Context, names []string) (stop func() error, err error) {
	stop = func() error { return nil }
	needed := slices.ContainsFunc(names, func(name string) bool {
		f, err := functions.Settings(name)
		return err == nil && f.Egress == api.EgressHost
	})
	if !needed || c.flags["host_services"] != "" {
		return stop, nil
	}
	program, err := s3Server()
	if err != nil {
		return nil, err
	}
	address, stop, err := startS3(ctx, program)
	if err != nil {
		return nil, fmt.Errorf("starting the server of the functions' inputs: %w", err)
	}
	c.flags["host_services"] = fmt.Sprintf("%d=%s", inputsPort, address)
	return stop, nil
}

// s3Server is the path of the S3 server's program.
func s3Server() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	program := filepath.Join(filepath.Dir(self), "skep-s3")
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("the S3 server is not beside skep: %w; `make s3` builds it, or choose --functions and experiments that need none", err)
	}
	return program, nil
}

// startS3 starts the S3 server at a port of its own.
func startS3(ctx context.Context, program string, args ...string) (address string, stop func() error, err error) {
	// Asked for and given back: another process could take it, and then the
	// server says so.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address = l.Addr().String()
	l.Close()
	cmd := exec.Command(program, append([]string{"-listen", address}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true} // an interrupt is for skep
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	cmd.Stderr = cmd.Stdout
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The signal at our death is sent at that of the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return "", nil, err
	}
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		var status *exec.ExitError
		if err := <-ended; !errors.As(err, &status) {
			return err
		}
		return nil // how it ends when it is told to does not matter
	}
	if err := awaitServing(ctx, out); err != nil {
		return "", nil, errors.Join(err, stop())
	}
	return address, stop, nil
}

// awaitServing reads what the server says until it serves, then lets it talk.
func awaitServing(ctx context.Context, out io.Reader) error {
	ready := make(chan error, 1)
	go func() {
		var said []string
		for s := bufio.NewScanner(out); s.Scan(); {
			said = append(said, s.Text())
			if strings.Contains(s.Text(), "serving") {
				ready <- nil
				_, _ = io.Copy(io.Discard, out) // until it ends
				return
			}
		}
		ready <- fmt.Errorf("it ended: %s", strings.Join(said, "; "))
	}()
	select {
	case err := <-ready:
		return err
	case <-time.After(5 * time.Minute): // it may have to make the inputs
		return errors.New("it does not serve")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
