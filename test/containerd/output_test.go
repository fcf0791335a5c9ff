package containerd

import (
	"bufio"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/shim/shimtest"
)

// A container has ended, and can be removed, also when its client has stopped reading
// what it writes, as under runc; who goes on reading gets all of it.
func TestOutputNobodyReads(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		for _, tt := range []struct {
			id      string
			runtime []string
		}{{"vm", vm}, {"runc", nil}} {
			for _, bytes := range []string{"150000", "100000000"} {
				id := tt.id + bytes
				cmd := c.Ctr(args("run", tt.runtime, shimtest.ProbeImage, id, "burst", bytes, "wait")...)
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				var stderr strings.Builder
				cmd.Stderr = &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(out)
				if line, err := r.ReadString('\n'); err != nil || line != "ready\n" {
					t.Fatalf("%s says %q, %v", id, line, err)
				}
				if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				c.Must("task", "kill", "--signal", "SIGUSR1", id)
				if bytes == "100000000" { // which waits for its reader, until then
					c.Must("task", "kill", "--signal", "SIGKILL", id)
				}
				c.Stopped(id)
				if bytes == "100000000" {
					c.Run("task", "delete", id) // its exit code is the container's
					if status := c.Status(id); status != "" {
						t.Errorf("deleted, %s is %s", id, status)
					}
				}
				if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, r)
				_ = cmd.Wait() // its code is the container's, or says that that is gone
				if bytes == "150000" && (n != 150000 || err != nil) {
					t.Errorf("%s: of %s bytes %d have come, %v; %s", id, bytes, n, err, &stderr)
				}
				if r := c.Run("container", "delete", id); r.Code != 0 {
					c.Remove(id)
				}
			}
		}
	})
}
