package control_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
	"github.com/skep-dev/skep/guest"
)

// visit is one whose agent the test plays.
type visit struct {
	net.Conn
	why    error
	closed chan struct{}
}

func (v *visit) Instance() string { return "i-0123456789abcdef" }
func (v *visit) Err() error       { return v.why }
func (v *visit) Close() error {
	select {
	case <-v.closed:
	default:
		close(v.closed)
	}
	return v.Conn.Close()
}

func TestExecPassesThrough(t *testing.T) {
	n := controltest.New("hello")
	host, agent := net.Pipe()
	v := &visit{Conn: host, closed: make(chan struct{})}
	var asked string
	n.Visits = func(function, instance string) (control.Visit, error) {
		asked = function + "," + instance
		return v, nil
	}
	c, _ := clientOf(t, control.Options{Node: n})
	go func() {
		guest.ReadFrame(agent, guest.FromExecHost, nil)
		guest.WriteFrame(agent, guest.KindStarted, guest.EncodeCount(7))
		for {
			k, p, err := guest.ReadFrame(agent, guest.FromExecHost, nil)
			if err != nil || k == guest.KindEOF {
				break
			}
			if k != guest.KindStdin { // there is room for output
				continue
			}
			guest.WriteFrame(agent, guest.KindTaken, guest.EncodeCount(len(p)))
			guest.WriteFrame(agent, guest.KindStdout, p)
		}
		guest.WriteFrame(agent, guest.KindEnded, guest.ProcessExit{Code: 3}.Encode())
		agent.Close()
	}()
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := c.Exec(ctx, "hello")
	if err != nil {
		t.Fatal(err)
	}
	cancel() // is for the start only
	var out bytes.Buffer
	env := []string{"A=" + strings.Repeat("x", 300_000)} // longer than other frames
	r, err := guest.Exec(t.Context(), conn, guest.Process{ID: "x", Argv: []string{"cat"}, Env: env, Stdin: true}, &out, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("abc", 100_000)
	if _, err := io.WriteString(r, text); err != nil {
		t.Error(err)
	}
	if err := r.CloseStdin(); err != nil {
		t.Error(err)
	}
	if exit, err := r.Wait(t.Context()); err != nil || exit.Code != 3 || out.String() != text || asked != "hello," {
		t.Errorf("%+v, %v, %d bytes; asked for %s", exit, err, out.Len(), asked)
	}
	<-v.closed
}

func TestExecEnds(t *testing.T) {
	closing := make(chan struct{})
	n := controltest.New("hello")
	var agent net.Conn
	var v *visit
	n.Visits = func(string, string) (control.Visit, error) {
		var host net.Conn
		host, agent = net.Pipe()
		v = &visit{Conn: host, closed: make(chan struct{})}
		return v, nil
	}
	c, path := clientOf(t, control.Options{Node: n, Closing: closing})
	begin := func() *guest.Running {
		t.Helper()
		conn, err := c.Exec(t.Context(), "i-0123456789abcdef")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			guest.ReadFrame(agent, guest.FromExecHost, nil)
			guest.WriteFrame(agent, guest.KindStarted, guest.EncodeCount(7))
		}()
		r, err := guest.Exec(t.Context(), conn, guest.Process{ID: "x", Argv: []string{"cat"}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := begin()
	v.why = errors.New("its function was removed")
	agent.Close()
	if _, err := r.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("the instance ended: %v", err)
	}
	<-v.closed
	r = begin()
	go agent.Write([]byte{0xff, 0xff, 0xff, 0x7f, byte(guest.KindStdout)}) // hostile
	if _, err := r.Wait(t.Context()); !errors.Is(err, guest.ErrLost) {
		t.Errorf("a hostile agent: %v", err)
	}
	<-v.closed
	r = begin()
	r.Close() // the client goes
	<-v.closed
	r = begin()
	close(closing)
	if _, err := r.Wait(t.Context()); !errors.Is(err, guest.ErrLost) {
		t.Errorf("the daemon ends: %v", err)
	}
	<-v.closed

	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Post("http://skep/v1/functions/hello/exec", "", nil)
	if err != nil || resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("without an upgrade: %v, %v", resp, err)
	}
	resp.Body.Close()
	var e *api.Error
	if _, err := c.Exec(t.Context(), "none"); !errors.As(err, &e) || e.Status != http.StatusNotFound {
		t.Errorf("no such function: %v", err)
	}
}
