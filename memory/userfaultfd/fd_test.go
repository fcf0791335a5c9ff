package userfaultfd_test

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

const pageSize = 4096

func addr(p *uffdtest.Process, page int) uint64 { return p.Regions[0].HostAddr + uint64(page)*pageSize }

// readFaults reads until that many events have come.
func readFaults(t *testing.T, p *uffdtest.Process, n int) (evs []userfaultfd.Event) {
	t.Helper()
	buf := make([]userfaultfd.Event, userfaultfd.MaxBatch)
	_ = p.FD.SetReadDeadline(time.Now().Add(20 * time.Second))
	for len(evs) < n {
		k, err := p.FD.ReadEvents(buf)
		if err != nil {
			t.Fatal(err)
		}
		evs = append(evs, buf[:k]...)
	}
	return evs
}

// Pages installed without waking, one wake of the whole range at the end.
func TestDontWakeThenWake(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(uffdtest.Op{Pages: []int{1}}, uffdtest.Op{Pages: []int{2}}, uffdtest.Op{Pages: []int{3}, Write: true})
		done <- err
	}()
	readFaults(t, p, 3)
	if n, err := p.FD.Copy(addr(p, 0), make([]byte, 8*pageSize), userfaultfd.DontWake); n != 8*pageSize || err != nil {
		t.Fatal(n, err)
	}
	if err := p.FD.Wake(addr(p, 0), 8*pageSize); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A page in the middle is there: the count is short, then EEXIST, then the rest.
func TestShortCopy(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	content := bytes.Repeat([]byte{1}, 8*pageSize)
	for name, c := range map[string]struct {
		base    int
		install func(page, pages int) (int, error)
	}{
		"copy": {0, func(page, pages int) (int, error) { return p.FD.Copy(addr(p, page), content[:pages*pageSize], 0) }},
		"zero": {100, func(page, pages int) (int, error) { return p.FD.ZeroPage(addr(p, page), uint64(pages)*pageSize, 0) }},
	} {
		for _, step := range []struct {
			page, pages, want int
			err               error
		}{{5, 1, 1, nil}, {2, 6, 3, nil}, {5, 3, 0, syscall.EEXIST}, {6, 2, 2, nil}} {
			n, err := c.install(c.base+step.page, step.pages)
			if n != step.want*pageSize || err != step.err {
				t.Errorf("%s %d pages at %d: %d bytes, %v; want %d pages, %v", name, step.pages, step.page, n, err, step.want, step.err)
			}
		}
	}
}

// While a removal is unread, nothing can be installed; once it is, it can.
func TestRemoveBlocksInstalls(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	if _, err := p.FD.ZeroPage(addr(p, 0), 4*pageSize, 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(uffdtest.Op{Pages: []int{0, 1, 2, 3}, Remove: true})
		done <- err
	}()
	if ok, err := p.FD.Poll(20 * time.Second); !ok {
		t.Fatal("no event", err)
	}
	if _, err := p.FD.Copy(addr(p, 9), make([]byte, pageSize), 0); err != syscall.EAGAIN {
		t.Errorf("install beside an unread removal: %v", err)
	}
	evs := readFaults(t, p, 1)
	want := userfaultfd.Event{Kind: userfaultfd.KindRemove, Start: addr(p, 0), End: addr(p, 4)}
	if evs[0] != want {
		t.Errorf("event %+v, want %+v", evs[0], want)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n, err := p.FD.Copy(addr(p, 0), make([]byte, pageSize), 0); n != pageSize || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}
}

// The process is gone: ESRCH, and a range that never was: ENOENT.
func TestGone(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	if _, err := p.FD.Copy(0x1000, make([]byte, pageSize), 0); err != syscall.ENOENT {
		t.Errorf("nowhere: %v", err)
	}
	p.Kill()
	if _, err := p.FD.Copy(addr(p, 0), make([]byte, pageSize), 0); err != syscall.ESRCH {
		t.Errorf("dead: %v", err)
	}
}

// A zero page that is to be watched for writes needs to be a page of its own:
// a copy that is protected from the start.
func TestWriteProtect(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{Raw: true})
	defer p.FD.Close()
	f, err := userfaultfd.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if !f.Has(userfaultfd.FeaturePagefaultFlagWP) {
		t.Skip("this kernel has no write-protection by userfaultfd: run on 5.7 or newer, x86-64")
	}
	if _, err := p.FD.API(userfaultfd.FeaturePagefaultFlagWP); err != nil {
		t.Fatal(err)
	}
	calls, err := p.FD.Register(addr(p, 0), p.Regions[0].Size, userfaultfd.ModeMissing|userfaultfd.ModeWriteProtect)
	if err != nil || !calls.CanWriteProtect() || !calls.CanZeroPage() {
		t.Fatal(err, calls)
	}
	if _, err := p.FD.Copy(addr(p, 2), make([]byte, pageSize), userfaultfd.WriteProtect); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := p.Do(uffdtest.Op{Pages: []int{2}, Write: true})
		done <- err
	}()
	evs := readFaults(t, p, 1)
	if evs[0].Flags&userfaultfd.FaultWriteProtect == 0 || evs[0].Address&^(pageSize-1) != addr(p, 2) {
		t.Errorf("%+v", evs[0])
	}
	if err := p.FD.WriteProtect(addr(p, 2), pageSize, false); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Close while others are in the kernel: they end first, then nobody reaches
// whatever has the number next.
func TestCloseDrains(t *testing.T) {
	testenv.NoLeaks(t)
	for range 20 {
		p := uffdtest.Spawn(t, uffdtest.Options{})
		var wg sync.WaitGroup
		buf := make([]byte, 64*pageSize)
		for i := range 4 {
			wg.Go(func() {
				for page := i * 1000; ; page = i*1000 + (page+64)%512 {
					_, err := p.FD.Copy(addr(p, page), buf, 0)
					if err == syscall.EBADF {
						return
					}
				}
			})
		}
		wg.Go(func() {
			evs := make([]userfaultfd.Event, 4)
			for {
				if _, err := p.FD.ReadEvents(evs); errors.Is(err, os.ErrClosed) {
					return
				}
			}
		})
		if err := p.FD.Close(); err != nil {
			t.Error(err)
		}
		if err := p.FD.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		p.Kill()
	}
}

func TestDeadline(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{})
	defer p.FD.Close()
	evs := make([]userfaultfd.Event, 4)
	done := make(chan error, 1)
	go func() {
		_, err := p.FD.ReadEvents(evs)
		done <- err
	}()
	if err := p.FD.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// A process that has a userfaultfd of its own, and waits for a page, ends with who
// has started it: nobody will ever bring the page.
func TestOrphan(t *testing.T) {
	p := uffdtest.Spawn(t, uffdtest.Options{Handover: true})
	if err := p.Orphan(uffdtest.Op{Pages: []int{0}}); err != nil {
		t.Error(err)
	}
	if err := p.FD.Close(); err != nil {
		t.Error(err)
	}
}
