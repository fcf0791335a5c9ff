package remote

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/creack/pty"
)

// Serve runs the command that one connection asks for. When the connection
// ends first, the command's process group is killed.
func Serve(conn net.Conn) {
	defer conn.Close()
	dec := gob.NewDecoder(conn)
	var c Command
	if err := dec.Decode(&c); err != nil {
		return
	}
	s := &sender{enc: gob.NewEncoder(conn)}
	exit := frame{Kind: kindExit}
	if code, err := serve(c, dec, s); err != nil {
		exit.Failure = fmt.Sprintf("running %q: %v", c.Args, err)
	} else {
		exit.Code = code
	}
	_ = s.send(exit)
}

func serve(c Command, dec *gob.Decoder, s *sender) (int, error) {
	if len(c.Args) == 0 {
		return 0, errors.New("no command")
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Dir = c.Dir
	in, outputs, err := start(cmd, c)
	if err != nil {
		return 0, err
	}
	go func() { // ends with the connection, which Serve closes
		for {
			var f frame
			if dec.Decode(&f) != nil {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				return
			}
			if len(f.Data) == 0 && c.Terminal {
				_, _ = in.Write([]byte{4}) // as its key would; closing it would be a hangup
			} else if len(f.Data) == 0 {
				_ = in.Close()
			} else if _, err := in.Write(f.Data); err != nil {
				_ = in.Close() // it reads no more
			}
		}
	}()
	var copies sync.WaitGroup
	for k, r := range outputs {
		copies.Go(func() { _ = s.copy(k, r) })
	}
	copies.Wait()
	err = cmd.Wait()
	_ = in.Close()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// start starts the command as a process group of its own, on a terminal or on pipes.
func start(cmd *exec.Cmd, c Command) (io.WriteCloser, map[kind]io.Reader, error) {
	if c.Terminal {
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: c.Rows, Cols: c.Columns})
		return tty, map[kind]io.Reader{kindOutput: tty}, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	return in, map[kind]io.Reader{kindOutput: out, kindError: errs}, cmd.Start()
}
