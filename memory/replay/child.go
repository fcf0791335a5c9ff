package replay

import (
	"encoding/gob"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sys"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

// childEnv marks the re-executed program; its value is not used.
const childEnv = "SKEP_REPLAY_CHILD"

const pageSize = 4096

// order is what the child is told to do.
type order struct {
	MemorySize int64
	Socket     string // that serves memory; "" maps MemoryFile
	Huge       bool   // advises huge pages, of MemoryFile
	MemoryFile string // to compare with
	Pages      []uint32
	Writes     []bool
	At         []time.Duration // when each page is touched; nil: one after the other
	Work       []time.Duration // processor time that is spent before each touch; nil: none
	Touchers   int
}

// touched is what it reports of that.
type touched struct {
	Mapped  time.Duration // until MemoryFile was mapped
	Took    time.Duration
	Faults  int64           // of a mapped file: of this process while it touched, with and without reading
	Read    int64           // bytes that those read from the disk
	Touches []time.Duration // how long each touch took, in the order of Pages
}

// verdict is what it reports of what it saw.
type verdict struct {
	Wrong int // pages with other contents than the memory file's
	Err   string
}

// ChildMain is the child's whole life, when this process is one; it does not
// return then. Call it first in main.
func ChildMain() {
	if os.Getenv(childEnv) == "" {
		return
	}
	sys.EndWithStdin()
	if err := child(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skep replay: child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(in io.Reader, out io.Writer) error {
	dec, enc := gob.NewDecoder(in), gob.NewEncoder(out)
	var o order
	if err := dec.Decode(&o); err != nil {
		return err
	}
	// A thread that waits for a page cannot stop for a collection.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(o.Touchers + 2)
	if o.Socket == "" {
		return mappedChild(&o, dec, enc)
	}
	mem, err := unix.Mmap(-1, 0, int(o.MemorySize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("mapping memory of the guest's size: %w", err)
	}
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // pages are installed singly anyway
	conn, err := handOver(o.Socket, mem)
	if err != nil {
		return err
	}
	defer conn.Close()
	var start bool
	if err := dec.Decode(&start); err != nil {
		return err
	}
	if err := enc.Encode(touch(&o, mem)); err != nil {
		return err
	}
	return judge(&o, mem, dec, enc)
}

// mappedChild maps the memory file, as a VMM without a server of its memory does.
func mappedChild(o *order, dec *gob.Decoder, enc *gob.Encoder) error {
	var start bool
	if err := dec.Decode(&start); err != nil {
		return err
	}
	begin := time.Now()
	f, err := os.Open(o.MemoryFile)
	if err != nil {
		return err
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, int(o.MemorySize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("mapping %s: %w", o.MemoryFile, err)
	}
	if o.Huge {
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a kernel without them ignores it, too
	}
	mapped := time.Since(begin)
	faults, read := used()
	res := touch(o, mem)
	after, readAfter := used()
	res.Mapped, res.Faults, res.Read = mapped, after-faults, readAfter-read
	if err := enc.Encode(res); err != nil {
		return err
	}
	return judge(o, mem, dec, enc)
}

// used is how many page faults this process has had, and how many bytes were read
// from disks for it.
func used() (faults, read int64) {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail
	return u.Minflt + u.Majflt, u.Inblock * 512
}

// judge compares what was touched with the memory file, when it is told to.
func judge(o *order, mem []byte, dec *gob.Decoder, enc *gob.Encoder) (err error) {
	var start bool
	// Comparing reads the disk: not while others are being measured.
	if err := dec.Decode(&start); err != nil {
		return err
	}
	var v verdict
	if v.Wrong, err = compare(o, mem); err != nil {
		v.Err = err.Error()
	}
	return enc.Encode(v)
}

// handOver does what Firecracker does when it restores a snapshot.
func handOver(socket string, mem []byte) (*net.UnixConn, error) {
	fd, err := userfaultfd.New()
	if err != nil {
		return nil, err
	}
	region := userfaultfd.Region{HostAddr: uint64(uintptr(unsafe.Pointer(&mem[0]))), Size: uint64(len(mem)), PageSize: pageSize}
	if _, err := userfaultfd.Adopt(fd, os.Getpid(), []userfaultfd.Region{region}); err != nil {
		return nil, err
	}
	msg, err := json.Marshal([]map[string]uint64{{"base_host_virt_addr": region.HostAddr, "size": region.Size, "offset": 0, "page_size": pageSize, "page_size_kib": pageSize}})
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := fd.Send(conn, msg); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// touch touches the pages from all threads, each taking the next in order.
func touch(o *order, mem []byte) touched {
	res := touched{Touches: make([]time.Duration, len(o.Pages))}
	var next atomic.Int64
	var wg, ready sync.WaitGroup
	ready.Add(o.Touchers + 1)
	var start time.Time
	for range o.Touchers {
		wg.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			ready.Wait()
			var own worker
			for {
				i := int(next.Add(1)) - 1
				if i >= len(o.Pages) {
					return
				}
				if o.At != nil {
					waitUntil(start.Add(o.At[i]))
				}
				if o.Work != nil {
					own.work(o.Work[i])
				}
				p := (*uint64)(unsafe.Pointer(&mem[int64(o.Pages[i])*pageSize]))
				before := time.Now()
				if o.Writes != nil && o.Writes[i] {
					atomic.AddUint64(p, 0) // a write from the beginning, as the guest's was
				} else {
					_ = atomic.LoadUint64(p)
				}
				res.Touches[i] = time.Since(before)
			}
		})
	}
	start = time.Now()
	ready.Done()
	wg.Wait()
	res.Took = time.Since(start)
	return res
}

// waitUntil sleeps as far as sleeping is exact enough, and spins the rest.
func waitUntil(t time.Time) {
	const spin = 200 * time.Microsecond
	if d := time.Until(t); d > spin {
		time.Sleep(d - spin)
	}
	for time.Now().Before(t) {
	}
}

// worker stands in for a function's own work between touches: it spends as much
// time of its thread on a processor. Time that the thread waits, for a page or for
// a processor, is not work and comes on top.
type worker struct{ owed time.Duration }

// leastWork is what is worth asking the clock for; less is owed until it is more.
const leastWork = 5 * time.Microsecond

func (w *worker) work(d time.Duration) {
	if w.owed += d; w.owed < leastWork {
		return
	}
	start := threadTime()
	for {
		if spent := threadTime() - start; spent >= w.owed {
			w.owed -= spent // what was too much is not owed next time
			return
		}
	}
}

// threadTime is how long this thread has been on a processor.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // cannot fail
	return time.Duration(ts.Nano())
}

// compare counts pages that do not hold what the memory file holds.
func compare(o *order, mem []byte) (wrong int, err error) {
	f, err := os.Open(o.MemoryFile)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, pageSize)
	for _, p := range o.Pages {
		off := int64(p) * pageSize
		if _, err := f.ReadAt(buf, off); err != nil {
			return wrong, err
		}
		if string(buf) != string(mem[off:off+pageSize]) {
			wrong++
		}
	}
	return wrong, nil
}
