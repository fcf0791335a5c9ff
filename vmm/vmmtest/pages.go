package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// pages is the simplest fault server that is right: each fault is answered
// with its page of the memory file.
type pages struct {
	t       testing.TB
	file    *os.File
	guest   userfaultfd.Guest
	present int // pages that were there when the memory was handed over
	faults  atomic.Int64
	removed map[uint64]bool // of the serving goroutine
	wg      sync.WaitGroup
}

func servePages(t testing.TB, path string) *pages {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	p := &pages{t: t, file: f, removed: map[uint64]bool{}}
	t.Cleanup(func() { f.Close() })
	return p
}

// attach is for vmm.Memory.Attach.
func (p *pages) attach(_ context.Context, g userfaultfd.Guest) error {
	p.guest = g
	for _, r := range g.Regions {
		n, err := presentPages(g.PID, r)
		if err != nil {
			return err
		}
		p.present += n
	}
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		if err := p.serve(); err != nil {
			p.t.Errorf("serving faults: %v", err)
		}
	}()
	return nil
}

// close ends it, after the machine.
func (p *pages) close() {
	if p.guest.FD != nil {
		p.guest.FD.Close()
	}
	if p.guest.Gone != nil {
		p.guest.Gone.Close()
	}
	p.wg.Wait()
}

func (p *pages) serve() error {
	evs := make([]userfaultfd.Event, userfaultfd.MaxBatch)
	for {
		n, err := p.guest.FD.ReadEvents(evs)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue // none was set: the FD is being closed
		}
		if err != nil {
			return err
		}
		for _, ev := range evs[:n] {
			if ev.Kind == userfaultfd.KindRemove {
				for a := ev.Start; a < ev.End; a += 4096 {
					p.removed[a] = true
				}
			}
		}
		for _, ev := range evs[:n] {
			if ev.Kind != userfaultfd.KindFault {
				continue
			}
			if err := p.install(ev.Address &^ 4095); err != nil {
				return fmt.Errorf("page at %#x: %w", ev.Address, err)
			}
		}
	}
}

func (p *pages) install(addr uint64) error {
	page := make([]byte, 4096)
	if !p.removed[addr] {
		offset, ok := p.offset(addr)
		if !ok {
			return errors.New("a fault outside guest memory")
		}
		if _, err := p.file.ReadAt(page, offset); err != nil {
			return err
		}
	}
	p.faults.Add(1)
	for {
		_, err := p.guest.FD.Copy(addr, page, 0)
		switch {
		case err == nil, errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ESRCH):
			return nil
		case errors.Is(err, syscall.EEXIST):
			return p.guest.FD.Wake(addr, 4096)
		case !errors.Is(err, syscall.EAGAIN):
			return err
		}
	}
}

func (p *pages) offset(addr uint64) (int64, bool) {
	for _, r := range p.guest.Regions {
		if addr >= r.HostAddr && addr-r.HostAddr < r.Size {
			return int64(r.Offset + addr - r.HostAddr), true
		}
	}
	return 0, false
}

// presentPages counts the pages of a region that need no fault any more.
func presentPages(pid int, r userfaultfd.Region) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	entries := make([]byte, r.Size/4096*8)
	if _, err := f.ReadAt(entries, int64(r.HostAddr/4096*8)); err != nil {
		return 0, err
	}
	n := 0
	for i := 7; i < len(entries); i += 8 {
		if entries[i]&0xc0 != 0 { // present or swapped
			n++
		}
	}
	return n, nil
}
