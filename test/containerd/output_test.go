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
// what it writes, as under runc.
func TestOutputNobodyReads(t *testing.T) {
	eachVM(t, func(t *testing.T, c *shimtest.Containerd) {
		for _, tt := range []struct {
			id      string
			runtime []string
			most    int // bytes that may wait for their reader
		}{{"vm", vm, 150_000}, {"runc", nil, 100_000}} {
			for _, kill := range []bool{false, true} {
				id, bytes := tt.id, tt.most
				if kill { // more than that: it waits for its reader, until then
					id, bytes = tt.id+"-killed", 100_000_000
				}
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
				if kill {
					c.Must("task", "kill", "--signal", "SIGKILL", id)
				}
				c.Stopped(id)
				if kill {
					c.Run("task", "delete", id) // its exit code is the container's
					if status := c.Status(id); status != "" {
						t.Errorf("deleted, %s is %s", id, status)
					}
				}
				if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, r)
				ended := cmd.Wait()
				// A ctr that is told of the end before it has read all may drop what has not come, under
				// runc all of it: that nothing is lost to others TestSlowReaderOfPipe of the shim sees.
				if !kill && (tt.runtime != nil && n < 64<<10 || err != nil || ended != nil) {
					t.Errorf("%s: of %d bytes %d have come, %v; %v: %s\n%s", id, bytes, n, err, ended, &stderr, c.Log())
				}
				if r := c.Run("container", "delete", id); r.Code != 0 {
					c.Remove(id)
				}
			}
		}
	})
}
