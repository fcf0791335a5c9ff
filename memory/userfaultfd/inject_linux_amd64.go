package userfaultfd

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// syscall makes the stopped child execute one system call: the instruction
// (0f 05) is written over whatever stands at its next instruction, stepped
// through, and taken away again, and all registers are put back.
func (t *tracee) syscall(nr uint64, args ...uint64) (int, error) {
	var saved unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.pid, &saved); err != nil {
		return 0, os.NewSyscallError("ptrace(GETREGS)", err)
	}
	pc := uintptr(saved.Rip)
	text := make([]byte, 2)
	if _, err := unix.PtracePeekText(t.pid, pc, text); err != nil {
		return 0, os.NewSyscallError("ptrace(PEEKTEXT)", err)
	}
	if _, err := unix.PtracePokeText(t.pid, pc, []byte{0x0f, 0x05}); err != nil {
		return 0, os.NewSyscallError("ptrace(POKETEXT)", err)
	}
	regs := saved
	regs.Rax = nr
	regs.Orig_rax = ^uint64(0) // not in a system call: nothing for the kernel to restart
	for i, dst := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9} {
		*dst = 0
		if i < len(args) {
			*dst = args[i]
		}
	}
	ret, err := t.step(&regs)
	if err != nil {
		return 0, err
	}
	if _, err := unix.PtracePokeText(t.pid, pc, text); err != nil {
		return 0, os.NewSyscallError("ptrace(POKETEXT)", err)
	}
	if err := unix.PtraceSetRegs(t.pid, &saved); err != nil {
		return 0, os.NewSyscallError("ptrace(SETREGS)", err)
	}
	if ret < 0 && ret > -4096 {
		return 0, syscall.Errno(-ret)
	}
	return int(ret), nil
}

// step runs one instruction with regs and returns what it left in RAX.
func (t *tracee) step(regs *unix.PtraceRegs) (int64, error) {
	if err := unix.PtraceSetRegs(t.pid, regs); err != nil {
		return 0, os.NewSyscallError("ptrace(SETREGS)", err)
	}
	if err := unix.PtraceSingleStep(t.pid); err != nil {
		return 0, os.NewSyscallError("ptrace(SINGLESTEP)", err)
	}
	if err := t.waitStop(); err != nil {
		return 0, err
	}
	var after unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.pid, &after); err != nil {
		return 0, os.NewSyscallError("ptrace(GETREGS)", err)
	}
	if after.Rip != regs.Rip+2 {
		return 0, fmt.Errorf("the injected instruction at %#x went to %#x", regs.Rip, after.Rip)
	}
	return int64(after.Rax), nil
}

// belowStack is where the stopped child has room for so many bytes that it does not
// use: below its stack pointer and the 128 bytes that a function may use there.
func (t *tracee) belowStack(n int) (uint64, error) {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.pid, &regs); err != nil {
		return 0, os.NewSyscallError("ptrace(GETREGS)", err)
	}
	return (regs.Rsp - 128 - uint64(n)) &^ 15, nil
}

func (t *tracee) write(addr uint64, b []byte) error {
	_, err := unix.PtracePokeData(t.pid, uintptr(addr), b)
	return os.NewSyscallError("ptrace(POKEDATA)", err)
}
