package shim

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// A reader that comes late to a named pipe gets all that a process wrote which has ended
// meanwhile.
func TestSlowReaderOfPipe(t *testing.T) {
	const n = 150_000 // more than a pipe holds
	name := filepath.Join(t.TempDir(), "stdout")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := newProc("", guest.Process{Argv: []string{"/app"}}, "", name, "")
	if p.io, err = openStdio(t.Context(), "c", "", name, "", false); err != nil {
		t.Fatal(err)
	}
	dial := agents(t, func(c net.Conn) {
		expect(t, c, guest.KindExec)
		tell(t, c, guest.KindStarted, guest.EncodeCount(7))
		go func() { // what there is room for
			for {
				if _, _, err := guest.ReadFrame(c, guest.FromExecHost, nil); err != nil {
					return
				}
			}
		}()
		tell(t, c, guest.KindStdout, []byte("ready\n"))
		for sent := 0; sent < n; sent += 10_000 {
			tell(t, c, guest.KindStdout, make([]byte, 10_000))
		}
		tell(t, c, guest.KindEnded, guest.ProcessExit{}.Encode())
	})
	if err := p.start(t.Context(), dial); err != nil {
		t.Fatal(err)
	}
	if _, err := p.wait(context.Background(), dial); err != nil {
		t.Fatal(err)
	}
	p.end(0, time.Now())
	got, err := io.Copy(io.Discard, client)
	if err != nil || got != n+6 {
		t.Errorf("of %d bytes %d have come, %v", n+6, got, err)
	}
	p.dispose(t.Context())
}
