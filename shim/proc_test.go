package shim

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/types/task"

	"github.com/skep-dev/skep/guest"
)

// gated is a reader of output that takes nothing until it is opened.
type gated struct {
	open chan struct{}
	mu   sync.Mutex // guards what follows
	bytes.Buffer
}

func (w *gated) Write(p []byte) (int, error) {
	<-w.open
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Buffer.Write(p)
}

// Close is what the end of its stream does to a write.
func (w *gated) Close() error {
	close(w.open)
	return nil
}

// agents hands out connections whose other ends these serve, one each.
func agents(t *testing.T, serve ...func(c net.Conn)) dialer {
	t.Helper()
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	return func(context.Context) (io.ReadWriteCloser, error) {
		if len(serve) == 0 {
			return nil, errOver
		}
		f := serve[0]
		serve = serve[1:]
		host, agent := net.Pipe()
		all.Go(func() {
			defer agent.Close()
			f(agent)
		})
		return host, nil
	}
}

// expect reads a frame of the host's.
func expect(t *testing.T, c net.Conn, want guest.Kind) []byte {
	k, p, err := guest.ReadFrame(c, guest.FromExecHost, nil)
	if err != nil || k != want {
		t.Errorf("frame of kind %d, want %d: %v", k, want, err)
	}
	return p
}

func tell(t *testing.T, c net.Conn, k guest.Kind, payload []byte) {
	if err := guest.WriteFrame(c, k, payload); err != nil {
		t.Errorf("frame of kind %d: %v", k, err)
	}
}

// A process has ended whoever reads what it wrote; that is kept for a slow reader, and
// is not for ever where containerd wants to have done with the process.
func TestOutputThatNobodyReads(t *testing.T) {
	for _, slow := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			text := strings.Repeat("x", 100_000)
			p := newProc("", guest.Process{Argv: []string{"/app"}}, "", "", "")
			w := &gated{open: make(chan struct{})}
			p.io = newStdio("")
			p.io.stdout = w
			if !slow {
				p.io.closers = append(p.io.closers, w)
			}
			dial := agents(t, func(c net.Conn) {
				expect(t, c, guest.KindExec)
				tell(t, c, guest.KindStarted, guest.EncodeCount(7))
				for rest := text; rest != ""; rest = rest[10_000:] {
					tell(t, c, guest.KindStdout, []byte(rest[:10_000]))
				}
				tell(t, c, guest.KindEnded, guest.ProcessExit{Code: 5}.Encode())
				expect(t, c, guest.KindNoted)
			})
			if err := p.start(t.Context(), dial); err != nil {
				t.Fatal(err)
			}
			exit, err := p.wait(t.Context(), dial)
			if err != nil || exit.Code != 5 {
				t.Errorf("%+v, %v", exit, err)
			}
			p.end(exit.Code, time.Now())
			select {
			case <-p.io.closed:
				t.Error("its streams are closed, and nothing was read")
			default:
			}
			if !slow {
				began := time.Now()
				p.dispose(t.Context())
				if took := time.Since(began); took != outputLimit {
					t.Errorf("containerd is kept waiting for %v", took)
				}
				synctest.Wait()
				return
			}
			go func() { time.Sleep(outputLimit / 2); close(w.open) }()
			p.dispose(t.Context())
			if w.String() != text {
				t.Errorf("of %d bytes %d have come", len(text), w.Len())
			}
		})
	}
}

// A process's connection may be lost while the guest is there: it is made anew, what
// the process is sent goes there, and its end is heard.
func TestConnectionIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProc("e", guest.Process{Argv: []string{"/app"}}, "in", "", "")
		var out bytes.Buffer
		in, client := io.Pipe()
		p.io = newStdio("")
		p.io.stdout, p.io.stdin = &out, in
		attached := make(chan struct{})
		dial := agents(t, func(c net.Conn) {
			var spec guest.Process
			if err := guest.Decode(expect(t, c, guest.KindExec), &spec); err != nil || !spec.Keep {
				t.Errorf("it ends with its connection: %+v, %v", spec, err)
			}
			tell(t, c, guest.KindStarted, guest.EncodeCount(7))
			tell(t, c, guest.KindStdout, []byte("one "))
		}, func(c net.Conn) {}, func(c net.Conn) {
			if id := expect(t, c, guest.KindAttach); string(id) != "exec-e" {
				t.Errorf("it attaches to %s", id)
			}
			tell(t, c, guest.KindStarted, guest.EncodeCount(7))
			tell(t, c, guest.KindStdout, []byte("two"))
			close(attached)
			if b := expect(t, c, guest.KindStdin); string(b) != "input" {
				t.Errorf("its input is %q", b)
			}
			expect(t, c, guest.KindEOF)
			expect(t, c, guest.KindSignal)
			tell(t, c, guest.KindEnded, guest.ProcessExit{Code: 9}.Encode())
			expect(t, c, guest.KindNoted)
		})
		if err := p.start(t.Context(), dial); err != nil {
			t.Fatal(err)
		}
		go func() {
			io.WriteString(client, "input")
			client.Close()
			<-attached
			synctest.Wait()
			if err := p.signal(15, false); err != nil {
				t.Error(err)
			}
		}()
		if exit, err := p.wait(t.Context(), dial); err != nil || exit.Code != 9 {
			t.Errorf("%+v, %v", exit, err)
		}
		<-p.last.Passed()
		if out.String() != "one two" {
			t.Errorf("it said %q", out.String())
		}
		p.end(9, time.Now())
		p.dispose(t.Context())
	})
}

// A process may run before anybody is attached to it: it takes signals, which wait until
// somebody is, and its output and end are not lost.
func TestAttachedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProc("", guest.Process{Argv: []string{"/app"}}, "", "", "")
		var out bytes.Buffer
		p.io = newStdio("")
		p.io.stdout = &out
		dial := agents(t, func(c net.Conn) {
			expect(t, c, guest.KindAttach)
			tell(t, c, guest.KindStarted, guest.EncodeCount(7))
			tell(t, c, guest.KindStdout, []byte("before"))
			if b := expect(t, c, guest.KindSignal); len(b) != 2 || b[0] != 15 || guest.SignalTo(b[1]) != guest.ToProcess {
				t.Errorf("the signal is %v", b)
			}
			tell(t, c, guest.KindEnded, guest.ProcessExit{Code: 3}.Encode())
			expect(t, c, guest.KindNoted)
		})
		if err := p.reserve(); err != nil {
			t.Fatal(err)
		}
		p.goesOn()
		if status, _, _ := p.status(); status != task.Status_RUNNING {
			t.Errorf("it is %v", status)
		}
		if err := p.signal(15, false); err != nil {
			t.Error(err)
		}
		if exit, err := p.wait(t.Context(), dial); err != nil || exit.Code != 3 {
			t.Errorf("%+v, %v", exit, err)
		}
		<-p.last.Passed()
		if out.String() != "before" {
			t.Errorf("it said %q", out.String())
		}
		p.end(3, time.Now())
		p.dispose(t.Context())
	})
}

// A process that the guest does not know any more is lost, and so is one whose guest is
// gone or breaks every connection.
func TestProcessIsLost(t *testing.T) {
	start := func(c net.Conn) {
		expect(t, c, guest.KindExec)
		tell(t, c, guest.KindStarted, guest.EncodeCount(7))
	}
	again := func(c net.Conn) {
		expect(t, c, guest.KindAttach)
		tell(t, c, guest.KindStarted, guest.EncodeCount(7))
	}
	hostile := []func(net.Conn){start}
	for range 2 * maxLost {
		hostile = append(hostile, again)
	}
	for name, serve := range map[string][]func(net.Conn){
		"unknown": {start, func(c net.Conn) {
			expect(t, c, guest.KindAttach)
			tell(t, c, guest.KindRefused, (&guest.RefusedError{Why: guest.RefusedNoProcess}).Encode())
		}},
		"gone":    {start},
		"hostile": hostile,
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newProc("", guest.Process{Argv: []string{"/app"}}, "", "", "")
			p.io = newStdio("")
			dial := agents(t, serve...)
			if err := p.start(t.Context(), dial); err != nil {
				t.Fatal(err)
			}
			if exit, err := p.wait(t.Context(), dial); err == nil {
				t.Errorf("%s: %+v, %v", name, exit, err)
			}
			p.end(137, time.Now())
			p.dispose(t.Context())
		})
	}
}

// What cannot be written is dropped, and ends nothing.
func TestOutputThatCannotBeWritten(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	o := &outlet{to: f}
	for _, text := range []string{"one", "two"} {
		if n, err := io.WriteString(o, text); n != len(text) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		f.Close()
	}
}
