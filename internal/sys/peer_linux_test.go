package sys

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestPeerPID(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if pid, err := PeerPID(conn.(*net.UnixConn)); err != nil || pid != os.Getpid() {
		t.Errorf("the listener is %d, %v; want %d", pid, err, os.Getpid())
	}
}
