// Package remote runs commands in the testbed's host VM: the driver asks over a
// byte stream, the VM's init answers. Copying files is a command too, tar.
package remote

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Command is what is to be run.
type Command struct {
	Args     []string
	Env      []string // NAME=value, added to the VM's own
	Dir      string
	Terminal bool // run it on a terminal of Rows and Columns
	Rows     uint16
	Columns  uint16
}

// kind tells what a frame holds.
type kind byte

const (
	kindInput  kind = iota + 1 // to the command's standard input; empty at its end
	kindOutput                 // from its standard output
	kindError                  // from its standard error
	kindExit                   // it has ended: Code, or Failure if it could not be run
)

// frame is what follows a Command in both directions.
type frame struct {
	Kind    kind
	Data    []byte
	Code    int
	Failure string
}

// chunk is how much of a stream one frame carries at most.
const chunk = 64 << 10

// sender writes frames from several goroutines.
type sender struct {
	mu  sync.Mutex
	enc *gob.Encoder // guarded by mu
}

func (s *sender) send(f frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enc.Encode(f)
}

// copy sends what r yields as frames of one kind until its end.
func (s *sender) copy(k kind, r io.Reader) error {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := s.send(frame{Kind: k, Data: buf[:n]}); err != nil {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
	}
}

// Run has the other end of conn run a command, and returns its exit code; one
// that a signal ended has 128 and the signal's number. An error means that it
// was not run to its end. It closes conn, which ends the command.
func Run(conn net.Conn, c Command, stdin io.Reader, stdout, stderr io.Writer) (code int, err error) {
	defer conn.Close()
	s := &sender{enc: gob.NewEncoder(conn)}
	if err := s.enc.Encode(c); err != nil {
		return 0, fmt.Errorf("asking the host VM to run %q: %w", c.Args, err)
	}
	go func() { // ends with conn, or with the process when stdin never ends
		if stdin != nil {
			if err := s.copy(kindInput, stdin); err != nil {
				return
			}
		}
		_ = s.send(frame{Kind: kindInput})
	}()
	dec := gob.NewDecoder(conn)
	for {
		var f frame
		if err := dec.Decode(&f); err != nil {
			return 0, fmt.Errorf("the connection to the host VM broke while it ran %q: %w", c.Args, err)
		}
		switch f.Kind {
		case kindOutput:
			_, err = stdout.Write(f.Data)
		case kindError:
			_, err = stderr.Write(f.Data)
		case kindExit:
			if f.Failure != "" {
				return 0, errors.New(f.Failure)
			}
			return f.Code, nil
		}
		if err != nil {
			return 0, fmt.Errorf("writing what %q printed: %w", c.Args, err)
		}
	}
}
