// Package uffdtest re-executes the test binary as the process whose page faults
// a test serves: several threads, several regions, every page's content
// reported back. A test's own process must never touch memory that a goroutine
// of it has to serve.
package uffdtest

import (
	"context"
	"encoding/gob"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

// Options of Spawn. The zero value is 16 MiB in one region, the userfaultfd
// made by userfaultfd.Start.
type Options struct {
	Sizes    []uint64            // bytes of each region
	Handover bool                // the process makes its own userfaultfd and hands it over
	Apart    bool                // with Handover: the message in pieces
	Before   []func() error      // for userfaultfd.Start
	Command  func(cmd *exec.Cmd) // changes the command before it is started
	Raw      bool                // leave FD unnegotiated and the regions unregistered
}

// Process is a running faulting process.
type Process struct {
	userfaultfd.Guest
	Cmd *exec.Cmd

	mu   sync.Mutex // serialises Do
	enc  *gob.Encoder
	dec  *gob.Decoder
	in   io.Closer
	kill func()
}

// Spawn starts the process; it is killed and reaped when the test ends. The FD
// is the caller's.
func Spawn(t testing.TB, o Options) *Process {
	t.Helper()
	testenv.Need(t, "uffd")
	if len(o.Sizes) == 0 {
		o.Sizes = []uint64{16 << 20}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"=1", "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=16")
	cmd.Stderr = os.Stderr
	if o.Command != nil {
		o.Command(cmd)
	}
	// Pipes of our own: Wait must not close them under Do.
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	cmd.Stdin, cmd.Stdout = inR, outW
	p := &Process{Cmd: cmd, enc: gob.NewEncoder(inW), dec: gob.NewDecoder(outR), in: inW}

	s := setup{Sizes: o.Sizes, Apart: o.Apart}
	var l *net.UnixListener
	if o.Handover {
		s.Handover = filepath.Join(testenv.Dir(t), "uffd.sock")
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.Handover, Net: "unix"}); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		err = cmd.Start()
	} else {
		p.FD, err = userfaultfd.Start(cmd, o.Before...)
	}
	if err != nil {
		t.Fatalf("starting the faulting process: %v", err)
	}
	p.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, f := range []*os.File{inR, inW, outR, outW} {
			f.Close()
		}
	})
	t.Cleanup(p.kill)
	inR.Close()
	outW.Close()
	if err := p.connect(s, l, o.Raw); err != nil {
		t.Fatalf("setting up the faulting process: %v", err)
	}
	return p
}

func pipe(t testing.TB) (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

func (p *Process) connect(s setup, l *net.UnixListener, raw bool) error {
	if err := p.enc.Encode(s); err != nil {
		return err
	}
	if l != nil {
		_ = l.SetDeadline(time.Now().Add(10 * time.Second))
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if p.Guest, err = userfaultfd.Receive(ctx, conn); err != nil {
			return err
		}
	}
	var a answer
	if err := p.dec.Decode(&a); err != nil {
		return err
	}
	if l != nil {
		return nil
	}
	fd := p.FD
	p.Guest = userfaultfd.Guest{FD: fd, Regions: a.Regions, PID: p.Cmd.Process.Pid}
	if raw {
		return nil
	}
	g, err := userfaultfd.Adopt(fd, p.PID, a.Regions)
	if err == nil {
		p.Guest = g
	}
	return err
}

// Do runs all ops at once, a thread each, and returns for each the sums of its
// pages. It fails when the process dies or hangs for half a minute.
func (p *Process) Do(ops ...Op) ([][]uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.enc.Encode(ops); err != nil {
		return nil, err
	}
	hang := time.AfterFunc(30*time.Second, func() { _ = p.Cmd.Process.Kill() })
	defer hang.Stop()
	var a answer
	if err := p.dec.Decode(&a); err != nil {
		return nil, err
	}
	if a.Err != "" {
		return nil, errors.New(a.Err)
	}
	return a.Sums, nil
}

// Orphan begins the ops and goes, as if this process had died. It waits for the
// other's end, which the test's deadline bounds.
func (p *Process) Orphan(ops ...Op) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := errors.Join(p.enc.Encode(ops), p.in.Close()); err != nil {
		return err
	}
	_, err := p.Cmd.Process.Wait()
	return err
}

// Kill ends the process and reaps it.
func (p *Process) Kill() { p.kill() }
