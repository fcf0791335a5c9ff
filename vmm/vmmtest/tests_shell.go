package vmmtest

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// sheller is the VMM's optional power of starting processes ahead.
func (s *suite) sheller(t *testing.T) vmm.Sheller {
	t.Helper()
	sh, ok := s.vmm.(vmm.Sheller)
	if !ok {
		t.Skip("this VMM starts no processes ahead (vmm.Sheller)")
	}
	return sh
}

func (s *suite) shell(t *testing.T, h vmm.Host) vmm.Shell {
	t.Helper()
	sh, err := s.sheller(t).Shell(s.context(t), vmm.RestoreSpec{Config: s.config, Host: h, State: s.state})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sh.Kill(); err != nil {
			t.Error(err)
		}
	})
	return sh
}

// testShell: a process that was started ahead becomes a machine like any other.
func (s *suite) testShell(t *testing.T) {
	h := s.host(t)
	sh := s.shell(t, h)
	p := servePages(t, s.memory)
	t.Cleanup(p.close)
	m, err := sh.Restore(s.context(t), p.attach)
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{Machine: m, host: h}
	t.Cleanup(func() { i.end(t) })
	if p.present != 0 {
		t.Errorf("%d pages were there when memory was handed over; want none", p.present)
	}
	// Its process was started before: spawn may be nothing.
	if tm := i.Timings(); tm.Load <= 0 {
		t.Errorf("timings %+v; want the load", tm)
	}
	checkConfined(t, i.PID())
	ctx := s.context(t)
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	s.checkGoesOn(t, i.await(ctx, t, 10))
	if err := sh.Kill(); err != nil || i.Err() != nil {
		t.Errorf("Kill of a shell that is used up: %v; its machine: %v", err, i.Err())
	}
	if _, err := sh.Restore(ctx, p.attach); err == nil {
		t.Error("a shell was used twice")
	}
}

// testShellEnds: a shell that is not used, one whose memory is refused, and one
// whose process has died leave nothing, and say what happened.
func (s *suite) testShellEnds(t *testing.T) {
	ctx := s.context(t)
	sh := s.shell(t, s.host(t))
	for range 2 {
		if err := sh.Kill(); err != nil {
			t.Error(err)
		}
	}
	<-sh.Done()
	refuse := errors.New("no room for it")
	sh = s.shell(t, s.host(t))
	_, err := sh.Restore(ctx, func(_ context.Context, g userfaultfd.Guest) error {
		return errors.Join(refuse, g.FD.Close())
	})
	if !errors.Is(err, refuse) {
		t.Errorf("Restore: %v, want %v", err, refuse)
	}
	<-sh.Done()

	sh = s.shell(t, s.host(t))
	if err := syscall.Kill(sh.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-sh.Done()
	attached := false
	_, err = sh.Restore(ctx, func(_ context.Context, g userfaultfd.Guest) error { attached = true; return g.FD.Close() })
	if err == nil || attached {
		t.Errorf("a dead shell was restored: %v, memory handed over: %v", err, attached)
	}
}
