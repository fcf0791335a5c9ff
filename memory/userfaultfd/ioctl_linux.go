package userfaultfd

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests: _IOWR(0xAA, nr, struct), spelled out because the sizes never change.
const (
	reqNew          = 0xaa00 // on /dev/userfaultfd
	reqAPI          = 0xc018aa3f
	reqRegister     = 0xc020aa00
	reqUnregister   = 0x8010aa01
	reqWake         = 0x8010aa02
	reqCopy         = 0xc028aa03
	reqZeroPage     = 0xc020aa04
	reqMove         = 0xc028aa05
	reqWriteProtect = 0xc018aa06
	reqContinue     = 0xc020aa07
	reqPoison       = 0xc020aa08
)

const devicePath = "/dev/userfaultfd"

// create makes a userfaultfd for this process. The device needs no capability
// where it exists and is readable; the system call is for older kernels.
func create() (int, error) {
	if dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(dev)
		n, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(dev), reqNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
		if e == 0 {
			return int(n), nil
		}
	}
	n, _, e := syscall.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// ioctl passes the address of a structure on the caller's stack: the kernel
// reads and writes it before the call returns, and keeps no reference.
func (f *FD) ioctl(req uintptr, arg unsafe.Pointer) syscall.Errno {
	if !f.enter() {
		return syscall.EBADF
	}
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.n, req, uintptr(arg))
	f.leave()
	return e
}

func asError(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// API negotiates features and returns all that the kernel has. It is the first
// call on a new FD, and can succeed once: EINVAL when a feature is not there
// (try Probe first) or when the FD has been through it already. It must have
// returned before any other call on the FD.
func (f *FD) API(want Feature) (Feature, error) {
	arg := struct{ api, features, ioctls uint64 }{apiVersion, uint64(want), 0}
	if e := f.ioctl(reqAPI, unsafe.Pointer(&arg)); e != 0 {
		return 0, os.NewSyscallError("UFFDIO_API", e)
	}
	if err := f.watch(); err != nil {
		return 0, err
	}
	return Feature(arg.features), nil
}

// Mode says which faults of a range are delivered.
type Mode uint64

// Modes of Register.
const (
	ModeMissing      Mode = 1 << 0
	ModeWriteProtect Mode = 1 << 1
	ModeMinor        Mode = 1 << 2
)

// Register begins the delivery of faults in a range of the process's memory,
// and returns the calls that the range takes.
func (f *FD) Register(start, length uint64, mode Mode) (Ioctls, error) {
	arg := struct{ start, length, mode, ioctls uint64 }{start, length, uint64(mode), 0}
	if e := f.ioctl(reqRegister, unsafe.Pointer(&arg)); e != 0 {
		return 0, os.NewSyscallError("UFFDIO_REGISTER", e)
	}
	return Ioctls(arg.ioctls), nil
}

// Unregister ends it; threads that wait in the range go on, on pages of zeros.
func (f *FD) Unregister(start, length uint64) error {
	arg := struct{ start, length uint64 }{start, length}
	if e := f.ioctl(reqUnregister, unsafe.Pointer(&arg)); e != 0 {
		return os.NewSyscallError("UFFDIO_UNREGISTER", e)
	}
	return nil
}

// InstallMode changes how pages are installed.
type InstallMode uint64

// Modes of the calls that install pages. DontWake leaves threads that wait on
// the pages asleep: a Wake of the whole range must follow.
const (
	DontWake     InstallMode = 1 << 0
	WriteProtect InstallMode = 1 << 1 // Copy and Continue only: the page is write-protected from the start
)

// Copy installs the pages at dst with the contents of src, whose length is a
// multiple of the page size, and wakes the threads that wait on them. It
// returns how many bytes it installed; a short count without an error is
// ordinary: go on from there.
//
// Ordinary errors: EEXIST, the first page is there already (a thread may still
// wait on it: Wake it); EAGAIN, the process is changing its mappings: read the
// pending events and try again; ENOENT, the range is gone; ESRCH, the process is.
func (f *FD) Copy(dst uint64, src []byte, mode InstallMode) (int, error) {
	if len(src) == 0 {
		return 0, nil
	}
	arg := struct {
		dst  uint64
		src  unsafe.Pointer
		len  uint64
		mode uint64
		copy int64
	}{dst, unsafe.Pointer(unsafe.SliceData(src)), uint64(len(src)), uint64(mode), 0}
	return installed(f.ioctl(reqCopy, unsafe.Pointer(&arg)), arg.copy)
}

// installed makes one result of the two that the kernel gives: a short install
// is reported as EAGAIN with a positive count.
func installed(e syscall.Errno, n int64) (int, error) {
	if n > 0 {
		return int(n), nil
	}
	return 0, asError(e)
}

// ZeroPage installs pages of zeros. Results are as those of Copy; EINVAL where
// the memory cannot have zero pages (huge pages).
func (f *FD) ZeroPage(start, length uint64, mode InstallMode) (int, error) {
	arg := struct {
		start, length, mode uint64
		zeropage            int64
	}{start, length, uint64(mode), 0}
	return installed(f.ioctl(reqZeroPage, unsafe.Pointer(&arg)), arg.zeropage)
}

// Continue maps pages that the page cache of a shared mapping already holds
// (minor faults). Results are as those of Copy.
func (f *FD) Continue(start, length uint64, mode InstallMode) (int, error) {
	arg := struct {
		start, length, mode uint64
		mapped              int64
	}{start, length, uint64(mode), 0}
	return installed(f.ioctl(reqContinue, unsafe.Pointer(&arg)), arg.mapped)
}

// MoveMode changes Move.
type MoveMode uint64

// Modes of Move.
const (
	MoveDontWake      MoveMode = 1 << 0
	MoveAllowSrcHoles MoveMode = 1 << 1
)

// Move takes pages from src to dst, both in the memory of the process that the
// FD was made in, which must also be the caller. Results are as those of Copy.
func (f *FD) Move(dst, src, length uint64, mode MoveMode) (int, error) {
	arg := struct {
		dst, src, len, mode uint64
		move                int64
	}{dst, src, length, uint64(mode), 0}
	return installed(f.ioctl(reqMove, unsafe.Pointer(&arg)), arg.move)
}

// Wake lets every thread that waits in the range try again.
func (f *FD) Wake(start, length uint64) error {
	arg := struct{ start, length uint64 }{start, length}
	return asError(f.ioctl(reqWake, unsafe.Pointer(&arg)))
}

// WriteProtect protects the pages of a range, registered with ModeWriteProtect,
// against writes; protect false lifts it and wakes the writers.
func (f *FD) WriteProtect(start, length uint64, protect bool) error {
	arg := struct{ start, length, mode uint64 }{start, length, 0}
	if protect {
		arg.mode = 1
	}
	return asError(f.ioctl(reqWriteProtect, unsafe.Pointer(&arg)))
}

// Poison makes accesses to the pages raise SIGBUS in the process.
func (f *FD) Poison(start, length uint64, mode InstallMode) (int, error) {
	arg := struct {
		start, length, mode uint64
		updated             int64
	}{start, length, uint64(mode), 0}
	return installed(f.ioctl(reqPoison, unsafe.Pointer(&arg)), arg.updated)
}
