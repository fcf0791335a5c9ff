package uffdtest

import (
	"encoding/gob"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sys"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

const childEnv = "SKEP_UFFDTEST_CHILD"

const pageSize = 4096

// Main turns the test binary into the faulting process when Spawn has
// re-executed it, and does not return then. Call it first in TestMain.
func Main() {
	if os.Getenv(childEnv) == "" {
		return
	}
	// A thread that waits for a page cannot take part in a collection.
	debug.SetGCPercent(-1)
	sys.EndWithStdin()
	if err := child(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "faulting process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Op is one thing that a thread of the faulting process does.
type Op struct {
	Pages  []int         // in the order of the regions in the memory file
	Write  bool          // write (and read back) one word of each page instead of reading it
	Remove bool          // madvise(MADV_DONTNEED) the range from Pages[0] to Pages[len-1]
	Repeat int           // times over; 0 is once
	Kernel bool          // touch by a system call (write to a pipe) rather than by the processor
	Pause  time.Duration // before each page, or before the removal
}

type setup struct {
	Sizes    []uint64 // bytes of each region
	Handover string   // socket to connect to; empty: report the addresses
	Apart    bool     // the message in pieces, the descriptor with the last
}

type answer struct {
	Regions []userfaultfd.Region
	Sums    [][]uint32 // per Op, per page: CRC-32C of the page's content; 0 of a zero page
	Err     string
}

type memory struct {
	maps [][]byte
}

func (m *memory) page(i int) []byte {
	for _, b := range m.maps {
		if n := len(b) / pageSize; i >= n {
			i -= n
			continue
		}
		return b[i*pageSize:][:pageSize]
	}
	return nil
}

func child(in io.Reader, out io.Writer) error {
	dec, enc := gob.NewDecoder(in), gob.NewEncoder(out)
	var s setup
	if err := dec.Decode(&s); err != nil {
		return err
	}
	m, regions, err := mapRegions(s.Sizes)
	if err != nil {
		return err
	}
	if s.Handover != "" {
		conn, err := handOver(s, regions)
		if err != nil {
			return err
		}
		defer conn.Close()
	}
	if err := enc.Encode(answer{Regions: regions}); err != nil {
		return err
	}
	for {
		var ops []Op
		if err := dec.Decode(&ops); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		if err := enc.Encode(m.run(ops)); err != nil {
			return err
		}
	}
}

// mapRegions maps anonymous memory with a hole of one page and more between regions.
func mapRegions(sizes []uint64) (*memory, []userfaultfd.Region, error) {
	m := &memory{}
	var regions []userfaultfd.Region
	offset := uint64(0)
	for _, size := range sizes {
		b, err := unix.Mmap(-1, 0, int(size)+pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return nil, nil, err
		}
		// As VMMs do: no huge page may stand where single pages are served.
		_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
		_ = unix.Mprotect(b[size:], unix.PROT_NONE)
		b = b[:size:size]
		m.maps = append(m.maps, b)
		regions = append(regions, userfaultfd.Region{HostAddr: uint64(uintptr(unsafe.Pointer(&b[0]))), Size: size, Offset: offset, PageSize: pageSize})
		offset += size
	}
	return m, regions, nil
}

// handOver is what Firecracker does.
func handOver(s setup, regions []userfaultfd.Region) (*net.UnixConn, error) {
	n, _, e := syscall.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		return nil, os.NewSyscallError("userfaultfd", e)
	}
	if err := register(int(n), regions); err != nil {
		return nil, err
	}
	var msg []map[string]uint64
	for _, r := range regions {
		msg = append(msg, map[string]uint64{"base_host_virt_addr": r.HostAddr, "size": r.Size, "offset": r.Offset, "page_size_kib": r.PageSize})
	}
	b, err := json.Marshal(msg)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.Handover, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if s.Apart {
		for len(b) > 20 {
			if _, err := conn.Write(b[:20]); err != nil {
				return nil, err
			}
			b = b[20:]
			time.Sleep(time.Millisecond) // so that the pieces arrive apart
		}
	}
	_, _, err = conn.WriteMsgUnix(b, unix.UnixRights(int(n)), nil)
	return conn, err
}

// register goes through the raw calls: the package's own are under test.
func register(fd int, regions []userfaultfd.Region) error {
	api := [3]uint64{0xAA, uint64(userfaultfd.FeatureEventRemove), 0}
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), 0xc018aa3f, uintptr(unsafe.Pointer(&api))); e != 0 {
		return os.NewSyscallError("UFFDIO_API", e)
	}
	for _, r := range regions {
		reg := [4]uint64{r.HostAddr, r.Size, 1, 0}
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), 0xc020aa00, uintptr(unsafe.Pointer(&reg))); e != 0 {
			return os.NewSyscallError("UFFDIO_REGISTER", e)
		}
	}
	return nil
}

// run does every Op on a thread of its own, all at once.
func (m *memory) run(ops []Op) answer {
	sums := make([][]uint32, len(ops))
	errs := make([]error, len(ops))
	var wg, ready sync.WaitGroup
	ready.Add(len(ops))
	for i := range ops {
		wg.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			ready.Wait()
			for range max(ops[i].Repeat, 1) {
				if sums[i], errs[i] = m.do(ops[i]); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	a := answer{Sums: sums}
	for _, err := range errs {
		if err != nil {
			a.Err = err.Error()
		}
	}
	return a
}

func (m *memory) do(op Op) ([]uint32, error) {
	if op.Remove {
		time.Sleep(op.Pause)
		first, last := m.page(op.Pages[0]), m.page(op.Pages[len(op.Pages)-1])
		n := uintptr(unsafe.Pointer(&last[0])) - uintptr(unsafe.Pointer(&first[0])) + pageSize
		return nil, unix.Madvise(unsafe.Slice(&first[0], n), unix.MADV_DONTNEED)
	}
	sums := make([]uint32, len(op.Pages))
	for i, p := range op.Pages {
		if op.Pause > 0 {
			time.Sleep(op.Pause)
		}
		b := m.page(p)
		switch {
		case op.Write:
			(*(*uint64)(unsafe.Pointer(&b[8])))++
		case op.Kernel:
			if err := throughKernel(b); err != nil {
				return nil, err
			}
		}
		sums[i] = Sum(b)
	}
	return sums, nil
}

// throughKernel makes the kernel read the page, as a VMM's device does.
func throughKernel(b []byte) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	_, err := unix.Write(p[1], b)
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is what Run reports of a page: 0 for a page of zeros.
func Sum(page []byte) uint32 {
	for i := 0; i < len(page); i += 8 {
		if *(*uint64)(unsafe.Pointer(&page[i])) != 0 {
			return crc32.Checksum(page, castagnoli)
		}
	}
	return 0
}
