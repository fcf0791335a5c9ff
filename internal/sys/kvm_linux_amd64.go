package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of /dev/kvm (linux/kvm.h), spelled out because their sizes never change.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84

	kvmAPIVersion = 12
	kvmExitIO     = 2
)

type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type kvmSegment struct {
	base                                 uint64
	limit                                uint32
	selector                             uint16
	kind, present, dpl, db, s, l, g, avl uint8
	unusable, _                          uint8
}

type kvmTable struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

type kvmSregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt         kvmSegment
	gdt, idt                                kvmTable
	cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
	interrupts                              [4]uint64
}

type kvmMemoryRegion struct {
	slot, flags               uint32
	guestAddr, size, hostAddr uint64
}

// kvmRunHeader is the beginning of struct kvm_run.
type kvmRunHeader struct {
	_          [8]uint8
	exitReason uint32
}

// Where the self-test guest's parts are in its memory.
const (
	guestPML4 = 0x1000
	guestPDPT = 0x2000
	guestPD   = 0x3000
	guestCode = 0x4000
	guestSize = 0x5000
)

// guestProgram counts ecx down to 0 and reads a port:
//
//	loop: dec ecx
//	      jnz loop
//	      in al, 0x10
//	      hlt
var guestProgram = []byte{0xff, 0xc9, 0x75, 0xfc, 0xe4, 0x10, 0xf4}

// ErrKVMSlow is the result of a self-test that did not end in time.
var ErrKVMSlow = errors.New("its guest is emulated in software: too slow for a kernel")

// KVMSelfTest runs a guest of a few instructions on /dev/kvm: it turns on
// paging in 64-bit mode, goes round a loop in ring 0, and reads a port, which
// ends it. It returns how long that took. The guest is stopped, with
// ErrKVMSlow, when limit is over, and with the context's error when that ends.
func KVMSelfTest(ctx context.Context, rounds uint32, limit time.Duration) (time.Duration, error) {
	vm, err := newKVMGuest()
	if err != nil {
		return 0, err
	}
	defer vm.close()
	if err := vm.load(rounds); err != nil {
		return 0, err
	}
	return vm.run(ctx, limit)
}

// kvmGuest is a virtual machine with one vCPU.
type kvmGuest struct {
	vm, vcpu int
	memory   []byte
	state    []byte // struct kvm_run, shared with the kernel
}

// request makes an ioctl whose argument is a number.
func request(fd int, req, arg uintptr) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// requestAt makes an ioctl whose argument is the address of a structure, which
// the kernel uses until the call returns.
func requestAt(fd int, req uintptr, arg unsafe.Pointer) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	if e != 0 {
		return e
	}
	return nil
}

func newKVMGuest() (g *kvmGuest, err error) {
	dev, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "opening", Path: "/dev/kvm", Err: err}
	}
	defer unix.Close(dev)
	if v, err := request(dev, kvmGetAPIVersion, 0); err != nil {
		return nil, fmt.Errorf("asking for the API version: %w", err)
	} else if v != kvmAPIVersion {
		return nil, fmt.Errorf("its API version is %d; want %d", v, kvmAPIVersion)
	}
	size, err := request(dev, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, fmt.Errorf("asking for a vCPU's size: %w", err)
	}
	g = &kvmGuest{vm: -1, vcpu: -1}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.vm, err = request(dev, kvmCreateVM, 0); err != nil {
		return nil, fmt.Errorf("creating a virtual machine: %w", err)
	}
	// Some Intel processors need three pages of address space that the guest
	// does not use.
	if _, err = request(g.vm, kvmSetTSSAddr, 0xfffbd000); err != nil {
		return nil, fmt.Errorf("placing the TSS: %w", err)
	}
	if g.vcpu, err = request(g.vm, kvmCreateVCPU, 0); err != nil {
		return nil, fmt.Errorf("creating a vCPU: %w", err)
	}
	if g.state, err = unix.Mmap(g.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("mapping a vCPU: %w", err)
	}
	g.memory, err = unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("making guest memory: %w", err)
	}
	return g, nil
}

func (g *kvmGuest) close() {
	if g.vcpu >= 0 {
		_ = unix.Close(g.vcpu)
	}
	if g.vm >= 0 {
		_ = unix.Close(g.vm)
	}
	if g.state != nil {
		_ = unix.Munmap(g.state)
	}
	if g.memory != nil {
		_ = unix.Munmap(g.memory)
	}
}

// load puts the program into memory and the vCPU at its beginning.
func (g *kvmGuest) load(rounds uint32) error {
	const present, large = 0x3, 0x83
	for at, entry := range map[int]uint64{guestPML4: guestPDPT | present, guestPDPT: guestPD | present, guestPD: large} {
		for i := range 8 {
			g.memory[at+i] = byte(entry >> (8 * i))
		}
	}
	copy(g.memory[guestCode:], guestProgram)
	// The memory is mapped outside Go's heap: its address stays.
	region := kvmMemoryRegion{size: guestSize, hostAddr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(g.memory))))}
	if err := requestAt(g.vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("giving the guest its memory: %w", err)
	}
	var s kvmSregs
	if err := requestAt(g.vcpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return fmt.Errorf("reading the vCPU's state: %w", err)
	}
	longMode(&s)
	if err := requestAt(g.vcpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return fmt.Errorf("setting the vCPU's state: %w", err)
	}
	regs := kvmRegs{rip: guestCode, rcx: uint64(rounds), rflags: 2}
	if err := requestAt(g.vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return fmt.Errorf("setting the vCPU's registers: %w", err)
	}
	return nil
}

// longMode is 64-bit ring 0 with flat segments and paging on.
func longMode(s *kvmSregs) {
	const (
		protected, paging = 1 << 0, 1 << 31 // cr0
		pae               = 1 << 5          // cr4
		enabled, active   = 1 << 8, 1 << 10 // efer
	)
	code := kvmSegment{limit: 0xffffffff, selector: 8, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := code
	data.kind, data.selector, data.l, data.db = 3, 16, 0, 1
	s.cs = code
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	s.cr3, s.cr4 = guestPML4, pae
	s.cr0 = protected | paging
	s.efer = enabled | active
}

// run runs the vCPU until its port access, or until it is interrupted.
func (g *kvmGuest) run(ctx context.Context, limit time.Duration) (time.Duration, error) {
	// The mapping is page-aligned and longer than the header.
	head := (*kvmRunHeader)(unsafe.Pointer(unsafe.SliceData(g.state)))
	var stop atomic.Bool
	thread := make(chan int, 1)
	ended := make(chan error, 1)
	began := time.Now()
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		ended <- g.runUntil(&stop)
	}()
	tid := <-thread
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrKVMSlow)
	defer cancel()
	select {
	case err := <-ended:
		if err == nil && head.exitReason != kvmExitIO {
			err = fmt.Errorf("its guest ended with exit reason %d; want %d, a port access", head.exitReason, kvmExitIO)
		}
		return time.Since(began), err
	case <-ctx.Done():
		stop.Store(true)
		for {
			// The runtime's own preemption signal: its handler takes any number of
			// them. One that comes just before KVM_RUN is lost, so they repeat.
			_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			select {
			case <-ended:
				return time.Since(began), context.Cause(ctx)
			case <-time.After(time.Millisecond):
			}
		}
	}
}

func (g *kvmGuest) runUntil(stop *atomic.Bool) error {
	for !stop.Load() {
		if _, err := request(g.vcpu, kvmRun, 0); err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
	return nil
}
