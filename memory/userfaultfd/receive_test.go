package userfaultfd_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

func pair(t *testing.T) (vmm, ours *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(testenv.Dir(t), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	vmm, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	ours, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmm.Close(); ours.Close() })
	return vmm, ours
}

// piece is one message of a VMM; a number of descriptors goes with it.
type piece struct {
	msg  string
	fds  int
	file bool // descriptors of /dev/null instead of userfaultfds
}

func TestReceive(t *testing.T) {
	testenv.Need(t, "uffd")
	const region = `{"base_host_virt_addr":4194304,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096,"later":{"x":[1]}}`
	const second = `{"base_host_virt_addr":8388608,"size":4096,"offset":8192,"page_size_kib":4096}`
	for name, c := range map[string]struct {
		pieces []piece
		want   string // in the error; "" for success
		n      int
	}{
		"whole":         {[]piece{{"[" + region + "]", 1, false}}, "", 1},
		"two regions":   {[]piece{{"[" + region + "," + second + "]", 1, false}}, "", 2},
		"fd first":      {[]piece{{"[", 1, false}, {region, 0, false}, {"]", 0, false}}, "", 1},
		"fd last":       {[]piece{{"[" + region[:30], 0, false}, {region[30:] + "]", 0, false}, {" ", 1, false}}, "", 1},
		"white space":   {[]piece{{" \n[" + region + "]\n", 1, false}}, "", 1},
		"no fd":         {[]piece{{"[" + region + "]", 0, false}}, "closed the connection", 0},
		"two fds":       {[]piece{{"[" + region + "]", 2, false}}, "more than one", 0},
		"two fds apart": {[]piece{{"[", 1, false}, {region, 1, false}}, "more than one", 0},
		"not a uffd":    {[]piece{{"[" + region + "]", 1, true}}, "not a userfaultfd", 0},
		"no regions":    {[]piece{{"[]", 1, false}}, "0 regions", 0},
		"garbage":       {[]piece{{"hello, world, this is", 1, false}}, "list of regions", 0},
		"cut":           {[]piece{{"[" + region, 1, false}}, "closed the connection", 0},
		"overlap":       {[]piece{{"[" + region + "," + region + "]", 1, false}}, "overlaps", 0},
		"unaligned":     {[]piece{{`[{"base_host_virt_addr":1,"size":4096,"offset":0,"page_size":4096}]`, 1, false}}, "no multiple", 0},
		"negative":      {[]piece{{`[{"base_host_virt_addr":-4096,"size":4096}]`, 1, false}}, "list of regions", 0},
		"overflow":      {[]piece{{`[{"base_host_virt_addr":18446744073709547520,"size":8192,"offset":0,"page_size":4096}]`, 1, false}}, "beyond all memory", 0},
		"endless":       {[]piece{{"[" + strings.Repeat(" ", 70<<10), 0, false}}, "is over", 0},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.NoLeaks(t)
			vmm, ours := pair(t)
			go func() {
				for _, p := range c.pieces {
					send(vmm, p)
					time.Sleep(2 * time.Millisecond) // so that the pieces arrive apart
				}
				_ = vmm.CloseWrite()
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			g, err := userfaultfd.Receive(ctx, ours)
			if err == nil {
				g.FD.Close()
				g.Gone.Close()
			}
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want == "" && (len(g.Regions) != c.n || g.PID != os.Getpid() || g.Regions[0].PageSize != 4096):
				t.Errorf("%+v", g)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func send(conn *net.UnixConn, p piece) {
	var fds []int
	for range p.fds {
		if p.file {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return
			}
			defer f.Close()
			fds = append(fds, int(f.Fd()))
			continue
		}
		n, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
		if e != 0 {
			return
		}
		defer unix.Close(int(n))
		fds = append(fds, int(n))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, _ = conn.WriteMsgUnix([]byte(p.msg), oob, nil)
}

func TestReceiveCancelled(t *testing.T) {
	_, ours := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := userfaultfd.Receive(ctx, ours); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
		t.Error(err)
	}
}
