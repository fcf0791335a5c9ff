package userfaultfd_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

func TestMain(m *testing.M) {
	uffdtest.Main()
	adviseMain()
	os.Exit(m.Run())
}

func TestProbe(t *testing.T) {
	testenv.Need(t, "uffd")
	f, err := userfaultfd.Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("features: %v", f)
}

func TestStartServesFault(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	page := bytes.Repeat([]byte{7}, 4096)
	done := make(chan error, 1)
	var sums [][]uint32
	go func() {
		var err error
		sums, err = p.Do(uffdtest.Op{Pages: []int{3}}, uffdtest.Op{Pages: []int{3}, Kernel: true})
		done <- err
	}()
	evs := make([]userfaultfd.Event, 8)
	_ = p.FD.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := p.FD.ReadEvents(evs)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	t.Logf("%+v", evs[:n])
	if k, err := p.FD.Copy(p.Regions[0].HostAddr+3*4096, page, 0); k != 4096 || err != nil {
		t.Fatal(k, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, s := range sums {
		if s[0] != uffdtest.Sum(page) {
			t.Errorf("sum %x", s[0])
		}
	}
}

// A child without privileges gets one too, and keeps nothing else of ours open.
func TestStartUnprivileged(t *testing.T) {
	testenv.Need(t, "uffd")
	cmd := exec.Command("/bin/sh", "-c", "id -u; ls -l /proc/self/fd | sed 's/.*-> //'")
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	fd, err := userfaultfd.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "65534\n") || strings.Contains(out.String(), "userfaultfd") {
		t.Errorf("child: %s", out.String())
	}
	if len(cmd.ExtraFiles) != 0 {
		t.Error("ExtraFiles changed")
	}
	if _, err := fd.API(0); err != nil {
		t.Error(err)
	}
}

func TestStartErrors(t *testing.T) {
	testenv.Need(t, "uffd")
	if _, err := userfaultfd.Start(exec.Command("/nonexistent/vmm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	want := errors.New("no such namespace")
	if _, err := userfaultfd.Start(exec.Command("/bin/true"), func() error { return want }); err != want {
		t.Errorf("before: %v", err)
	}
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, err := userfaultfd.Start(cmd); err == nil {
		t.Error("Pdeathsig was taken")
	}
}

func TestStartBefore(t *testing.T) {
	testenv.Need(t, "uffd")
	var tid int
	cmd := exec.Command("/bin/true")
	fd, err := userfaultfd.Start(cmd, func() error { tid = unix.Gettid(); return unix.Unshare(unix.CLONE_NEWUTS) })
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if tid == 0 {
		t.Error("not called")
	}
}
