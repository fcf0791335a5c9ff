package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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

// testShellLoads: where the memory is served ahead a VMM may load device state ahead,
// and what is left of the restore is to say who serves it from then on.
func (s *suite) testShellLoads(t *testing.T) {
	ctx, h := s.context(t), s.host(t)
	p := servePages(t, s.memory)
	t.Cleanup(p.close)
	sh, err := s.sheller(t).Shell(ctx, vmm.RestoreSpec{Config: s.config, Host: h, State: s.state, Memory: vmm.Memory{Attach: p.attach}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sh.Kill() })
	ahead, calls := p.guest.FD != nil, 0
	t.Logf("loaded ahead: %v, by %d faults", ahead, p.faults.Load())
	m, err := sh.Restore(ctx, func(ctx context.Context, g userfaultfd.Guest) error {
		if calls++; ahead && g.FD == nil {
			return nil
		}
		return p.attach(ctx, g)
	})
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{Machine: m, host: h}
	t.Cleanup(func() { i.end(t) })
	if tm := i.Timings(); calls != 1 || ahead && tm.Load != 0 {
		t.Errorf("memory was attached %d times after its process was started; timings %+v, loaded ahead: %v", calls, tm, ahead)
	}
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	s.checkGoesOn(t, i.await(ctx, t, 10))

	// Whose state is refused is no shell, and says why.
	bad := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(bad, []byte("no device state"), 0o644); err != nil {
		t.Fatal(err)
	}
	q := servePages(t, s.memory)
	t.Cleanup(q.close)
	refused, err := s.sheller(t).Shell(ctx, vmm.RestoreSpec{Config: s.config, Host: s.host(t), State: bad, Memory: vmm.Memory{Attach: q.attach}})
	if err == nil {
		_, err = refused.Restore(ctx, q.attach)
	}
	if !errors.Is(err, vmm.ErrState) {
		t.Errorf("a shell of device state that is none: %v, want %v", err, vmm.ErrState)
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
