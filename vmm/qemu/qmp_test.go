package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// peer is QEMU's end in a test.
type peer struct {
	*net.UnixConn
	in *bufio.Reader
}

func connect(t *testing.T, onEvent func(message)) (*client, *peer) {
	t.Helper()
	testenv.NoLeaks(t)
	if onEvent == nil {
		onEvent = func(message) {}
	}
	c, far, err := newClient(onEvent)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(far)
	far.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close(); conn.Close() })
	return c, &peer{conn.(*net.UnixConn), bufio.NewReader(conn)}
}

// command reads one command.
func (p *peer) command(t *testing.T) command {
	t.Helper()
	line, err := p.in.ReadBytes('\n')
	var c command
	if err == nil {
		err = json.Unmarshal(line, &c)
	}
	if err != nil {
		t.Errorf("reading a command: %q, %v", line, err)
	}
	return c
}

func TestCallsArePipelinedAndAnsweredInOrder(t *testing.T) {
	events := make(chan string, 4)
	c, p := connect(t, func(m message) { events <- m.Event })
	go func() {
		fmt.Fprintf(p, "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n")
		a, b := p.command(t), p.command(t) // both, before any answer
		fmt.Fprintf(p, "{\"event\": \"STOP\", \"timestamp\": {}}\r\n")
		fmt.Fprintf(p, "{\"return\": {\"n\": 2}, \"id\": %d}\r\n{\"return\": {\"n\": 1}, \"id\": %d}\r\n{\"return\": {}, \"id\": 999}\r\n", b.ID, a.ID)
	}()
	got, err := c.do(t.Context(), command{Execute: "a"}, command{Execute: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if string(got[0]) != `{"n": 1}` || string(got[1]) != `{"n": 2}` {
		t.Errorf("answers %s", got)
	}
	if e := <-events; e != "STOP" {
		t.Errorf("event %s", e)
	}
}

func TestCallErrors(t *testing.T) {
	c, p := connect(t, nil)
	go func() {
		a := p.command(t)
		fmt.Fprintf(p, "{\"id\": %d, \"error\": {\"class\": \"GenericError\", \"desc\": \"it is raining\"}}\r\n", a.ID)
	}()
	var refusal *commandError
	if _, err := c.do(t.Context(), command{Execute: "cont"}); !errors.As(err, &refusal) || err.Error() != "cont: it is raining" {
		t.Errorf("a refusal: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { p.command(t); cancel() }()
	if _, err := c.do(ctx, command{Execute: "stop"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v", err)
	}
	go func() { p.command(t); p.Close() }()
	for range 2 { // while it waits, and afterwards
		if _, err := c.do(t.Context(), command{Execute: "stop"}); !errors.Is(err, errClosed) {
			t.Errorf("a closed channel: %v", err)
		}
	}
}

func TestEndlessMessageEndsTheChannel(t *testing.T) {
	c, p := connect(t, nil)
	go func() {
		_, _ = p.Write([]byte(`{"event": "` + strings.Repeat("x", 2*maxMessage)))
	}()
	<-c.closed
	if err := c.why(); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("the channel ended with %v", err)
	}
}

func TestFilesAreHandedOver(t *testing.T) {
	c, p := connect(t, nil)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fds := make(chan int, 1)
	go func() {
		line, oob := make([]byte, 4096), make([]byte, 64)
		n, oobn, _, _, err := p.ReadMsgUnix(line, oob)
		if err != nil || !bytes.Contains(line[:n], []byte("getfd")) {
			t.Errorf("%q, %v", line[:n], err)
		}
		var cmd command
		if err := json.Unmarshal(bytes.SplitAfter(line[:n], []byte("\n"))[0], &cmd); err != nil {
			t.Error(err)
		}
		fds <- countRights(t, oob[:oobn])
		fmt.Fprintf(p, "{\"return\": {}, \"id\": %d}\n{\"return\": {}, \"id\": %d}\n", cmd.ID, cmd.ID+1)
	}()
	if _, err := c.do(t.Context(), command{Execute: "getfd", file: f}, command{Execute: "migrate"}); err != nil {
		t.Fatal(err)
	}
	if n := <-fds; n != 1 {
		t.Errorf("%d descriptors were handed over", n)
	}
}

// FuzzMessage: whatever comes, the reader goes on or ends with an error, and
// holds no more than its limit.
func FuzzMessage(f *testing.F) {
	for _, seed := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`,
		`{"return": {}, "id": 1}`,
		`{"id": 1, "error": {"class": "GenericError", "desc": "x"}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "completed"}}`,
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`,
		`{"event": "SHUTDOWN", "data": [1]}`, `{"id": -1}`, `{"id": 1e99}`, "{", "", "null", `"text"`,
	} {
		f.Add([]byte(seed + "\r\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &machine{migration: make(chan string, 1)}
		c := &client{onEvent: m.onEvent, pending: map[uint64]chan<- message{1: make(chan message, 1)}}
		in := bufio.NewReaderSize(bytes.NewReader(b), 128)
		for {
			msg, err := readMessage(in)
			if err != nil {
				return
			}
			c.dispatch(msg)
			if len(msg.Event)+len(msg.Data)+len(msg.Return) > 128 {
				t.Fatalf("a message longer than the limit: %+v", msg)
			}
		}
	})
}
