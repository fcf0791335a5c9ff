package control_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

// Who has no token, and does not send what it has announced, is answered and let go.
func TestUnsentBodyIsNotWaitedFor(t *testing.T) {
	h, err := control.RequireToken(strings.Repeat("t", 32), nil, control.New(control.Options{Node: controltest.New(), Version: api.Version{Version: "v1", Go: "go1"}}).Handler())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", serveTCP(t, h))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "POST /v1/snapshots HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 401 ") {
		t.Errorf("%q, %v: want an answer, and that the connection ends", b, err)
	}
}
