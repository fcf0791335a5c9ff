package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sys"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/memory/workingset"
)

// Floor is what the machine can do at best, measured beside the policies.
type Floor struct {
	Name  string        `json:"name"` // see the constants
	Run   int           `json:"run"`
	Total time.Duration `json:"total_ns"`
	// Each is the time of one call (FloorInstall) or of one touch, the median (FloorFault).
	Each time.Duration `json:"each_ns"`
	MBps float64       `json:"mb_per_s"`
}

// Names of the floors.
const (
	FloorInstall = "install" // the runs of the trace from memory, one call each, nothing else
	FloorFault   = "fault"   // each page by its fault: read the event (without ever sleeping), copy from memory, and nothing else
	FloorDisk    = "disk"    // the bytes of the working set by large reads past the page cache
)

// measureFloors measures all three.
func measureFloors(ctx context.Context, o Options, t *workingset.Trace, run int) ([]Floor, error) {
	src := o.Sources[0]
	content, err := loadPages(src, t)
	if err != nil {
		return nil, err
	}
	defer content.free()
	var out []Floor
	for _, f := range []struct {
		name    string
		measure func() (Floor, error)
	}{
		{FloorInstall, func() (Floor, error) { return floorInstall(ctx, o, src, t, content) }},
		{FloorFault, func() (Floor, error) { return floorFault(ctx, o, src, t, content) }},
		{FloorDisk, func() (Floor, error) { return DiskFloor(filepath.Join(src.Dir, workingset.SetFile)) }},
	} {
		floor, err := f.measure()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		floor.Name, floor.Run = f.name, run
		out = append(out, floor)
	}
	return out, nil
}

func floorInstall(ctx context.Context, o Options, src memory.Source, t *workingset.Trace, content *pages) (Floor, error) {
	o.Touchers, o.Work = 1, false
	g, err := spawn(ctx, o, "", src, t)
	if err != nil {
		return Floor{}, err
	}
	defer g.end()
	runs := workingset.Runs(t.Touches, func(uint32) bool { return false }, 0)
	base := g.Regions[0].HostAddr
	start := time.Now()
	for _, r := range runs {
		if _, err := g.FD.Copy(base+uint64(r.First)*pageSize, content.run(r), 0); err != nil {
			return Floor{}, err
		}
	}
	took := time.Since(start)
	bytes := float64(len(t.Touches)) * pageSize
	f := Floor{Total: took, Each: took / time.Duration(max(len(runs), 1)), MBps: bytes / 1e6 / took.Seconds()}
	_, err = g.touchAll()
	return f, err
}

func floorFault(ctx context.Context, o Options, src memory.Source, t *workingset.Trace, content *pages) (Floor, error) {
	o.Touchers, o.Pauses, o.Work = 1, false, false
	g, err := spawn(ctx, o, "", src, t)
	if err != nil {
		return Floor{}, err
	}
	defer g.end()
	served := make(chan error, 1)
	var stop atomic.Bool
	go func() { served <- bareFaults(g.FD, g.Regions[0].HostAddr, content, &stop) }()
	res, err := g.touchAll()
	stop.Store(true)
	if serr := <-served; err == nil {
		err = serr
	}
	return Floor{Total: res.Took, Each: median(res.Touches), MBps: float64(len(t.Touches)) * pageSize / 1e6 / max(res.Took.Seconds(), 1e-9)}, err
}

// bareFaults is the loop that every handler is at least: on a thread of its own.
func bareFaults(fd *userfaultfd.FD, base uint64, content *pages, stop *atomic.Bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var evs [1]userfaultfd.Event
	for !stop.Load() {
		n, err := fd.TryReadEvents(evs[:])
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		addr := evs[0].Address &^ (pageSize - 1)
		if _, err := fd.Copy(addr, content.page(uint32((addr-base)/pageSize)), 0); err != nil && !errors.Is(err, syscall.EEXIST) {
			return err
		}
	}
	return nil
}

// pages are the contents of the trace's pages, sorted, in memory that has been
// touched, as a policy's buffers are.
type pages struct {
	sorted []uint32
	mem    []byte
	at     map[uint32]int
}

func loadPages(src memory.Source, t *workingset.Trace) (*pages, error) {
	p := &pages{sorted: slices.Sorted(slices.Values(t.Pages())), at: make(map[uint32]int, len(t.Touches))}
	f, err := os.Open(src.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.mem, err = sys.AllocHuge(len(p.sorted)*pageSize/sys.HugePageSize + 1)
	if err != nil {
		return nil, err
	}
	for i, page := range p.sorted {
		p.at[page] = i
		if _, err := f.ReadAt(p.mem[i*pageSize:(i+1)*pageSize], int64(page)*pageSize); err != nil {
			p.free()
			return nil, err
		}
	}
	return p, nil
}

func (p *pages) page(n uint32) []byte { i := p.at[n] * pageSize; return p.mem[i : i+pageSize] }

// run is the contents of a run: contiguous, since the pages are sorted.
func (p *pages) run(r workingset.Run) []byte {
	i := p.at[r.First] * pageSize
	return p.mem[i : i+int(r.Bytes())]
}

func (p *pages) free() { sys.FreeHuge(p.mem) }

// DiskFloor reads a file once, as fast as the disk goes: pieces of 1 MiB,
// some at once, past the page cache.
func DiskFloor(path string) (Floor, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECT, 0)
	if err != nil {
		return Floor{}, fmt.Errorf("opening %s with O_DIRECT: %w", path, err)
	}
	defer unix.Close(fd)
	const piece, depth = 1 << 20, 8
	mem, err := sys.AllocHuge(piece * depth / sys.HugePageSize)
	if err != nil {
		return Floor{}, err
	}
	defer sys.FreeHuge(mem)
	var next, bytes atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, depth)
	start := time.Now()
	for i := range depth {
		wg.Go(func() {
			for {
				n, err := unix.Pread(fd, mem[i*piece:(i+1)*piece], (next.Add(1)-1)*piece)
				if err != nil {
					errs <- err
				}
				if n <= 0 {
					return
				}
				bytes.Add(int64(n))
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	select {
	case err := <-errs:
		return Floor{}, err
	default:
	}
	return Floor{Total: took, MBps: float64(bytes.Load()) / 1e6 / took.Seconds()}, nil
}
