package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A container that shares its pod's loopback with others, as a pod's containers do,
// finds them at 127.0.0.1, or at ::1. They are not in the guest: so what its processes ask
// for there, and nobody in the guest serves, they ask the gateway for, where the host leads
// it to its own 127.0.0.1. That is decided by the kernel, when somebody connects or
// sends: nothing is listened for, polled or copied, and a port that nobody has on
// either side is refused as ever.
//
// The programs are a dozen instructions each, and have been the same to kernels since
// 5.3: a library that loads them from files of a compiler's would be half of the agent.

// shareLoopback has it so for all processes in a cgroup and below it.
func shareLoopback(group *os.File, gateway [4]byte) error {
	to := int32(binary.NativeEndian.Uint32(gateway[:]))
	for _, p := range []struct {
		kind uint32
		code []insn
	}{
		{unix.BPF_CGROUP_INET4_CONNECT, outward(false, to)},
		{unix.BPF_CGROUP_INET6_CONNECT, outward(true, to)},
		{unix.BPF_CGROUP_INET6_CONNECT, outward6(to)},
		{unix.BPF_CGROUP_UDP4_SENDMSG, outward(false, to)},
		{unix.BPF_CGROUP_UDP6_SENDMSG, outward(true, to)},
		// Whom they have reached they are to find under the address that they have asked at.
		{unix.BPF_CGROUP_UDP4_RECVMSG, homeward(false, to)},
		{unix.BPF_CGROUP_UDP6_RECVMSG, homeward(true, to)},
		{unix.BPF_CGROUP_INET4_GETPEERNAME, homeward(false, to)},
		{unix.BPF_CGROUP_INET6_GETPEERNAME, homeward(true, to)},
	} {
		if err := attachProgram(group, p.kind, p.code); err != nil {
			return fmt.Errorf("leading what nobody serves at 127.0.0.1 to the pod (BPF_CGROUP_… %d; a guest kernel of 5.8 or later with CONFIG_CGROUP_BPF can): %w", p.kind, err)
		}
	}
	return nil
}

// insn is an instruction of BPF, as the kernel takes it.
type insn struct {
	code byte
	regs byte // destination, and source << 4
	off  int16
	imm  int32
}

// Opcodes, of instructions on 32 bits but for those of r1 to r10 as pointers.
const (
	load    = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	store   = unix.BPF_STX | unix.BPF_MEM | unix.BPF_W
	store16 = unix.BPF_STX | unix.BPF_MEM | unix.BPF_H
	storeK  = unix.BPF_ST | unix.BPF_MEM | unix.BPF_W
	move    = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	moveK   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	moveK32 = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K
	addK    = unix.BPF_ALU64 | unix.BPF_ADD | unix.BPF_K
	andK    = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	jeqK    = unix.BPF_JMP32 | unix.BPF_JEQ | unix.BPF_K
	jneK    = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	jne64K  = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	jump    = unix.BPF_JMP | unix.BPF_JA
	call    = unix.BPF_JMP | unix.BPF_CALL
	exit    = unix.BPF_JMP | unix.BPF_EXIT
)

// Offsets in struct bpf_sock_addr, and the kernel's numbers of helpers
// (include/uapi/linux/bpf.h).
const (
	userIP4  = 4
	userIP6  = 8 // four of 32 bits
	userPort = 24
	protocol = 36

	lookupTCP     = 84
	lookupUDP     = 85
	releaseSocket = 86

	ownNamespace = -1 // BPF_F_CURRENT_NETNS

	// Lengths of struct bpf_sock_tuple.
	tuple4 = 12
	tuple6 = 36
)

// mapped is what an address of IPv4 has before it in one of IPv6.
var mapped = int32(binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff}))

// toOut stands for the distance to a program's end.
const toOut = 0x7fff

// outward leads what is for 127.0.0.0/8 to another address, unless a socket is there that
// takes it. A socket of IPv6 may ask for the same address mapped (::ffff:127.0.0.1).
func outward(six bool, to int32) []insn {
	ip, code := addressOf(six)
	code = append(code,
		insn{load, 0x62, ip, 0}, // r2: the address
		insn{move, 0x23, 0, 0},
		insn{andK, 0x03, 0, 0xff},
		insn{jneK, 0x03, toOut, 127},
		// struct bpf_sock_tuple on the stack: from anywhere to there.
		insn{storeK, 0x0a, -12, 0},
		insn{store, 0x2a, -8, 0},
		insn{storeK, 0x0a, -4, 0},
		insn{load, 0x63, userPort, 0},
		insn{store16, 0x3a, -2, 0},
	)
	return unlessServed(code, tuple4, insn{moveK32, 0x02, 0, to}, insn{store, 0x26, ip, 0})
}

// outward6 leads what is for ::1 to another address of IPv4, unless a socket is there that
// takes it: as a socket of IPv6 asks for one, mapped. A socket of IPv6 only cannot ask so,
// and the kernel leads nothing so that is sent without connecting: they reach nobody.
func outward6(to int32) []insn {
	code := []insn{{move, 0x16, 0, 0}}
	here := [4]int32{3: int32(binary.NativeEndian.Uint32([]byte{0, 0, 0, 1}))}
	for i, want := range here {
		code = append(code, insn{load, 0x62, userIP6 + 4*int16(i), 0}, insn{jneK, 0x02, toOut, want},
			insn{storeK, 0x0a, -tuple6 + 4*int16(i), 0}, insn{storeK, 0x0a, -tuple6 + 16 + 4*int16(i), want})
	}
	code = append(code,
		insn{storeK, 0x0a, -4, 0},
		insn{load, 0x63, userPort, 0},
		insn{store16, 0x3a, -2, 0},
	)
	return unlessServed(code, tuple6, insn{moveK32, 0x02, 0, mapped}, insn{store, 0x26, userIP6 + 8, 0}, insn{moveK32, 0x02, 0, to}, insn{store, 0x26, userIP6 + 12, 0})
}

// unlessServed goes on with instead unless a socket takes what the struct bpf_sock_tuple
// of that length says, the last thing on the stack.
func unlessServed(code []insn, tuple int16, instead ...insn) []insn {
	code = append(code,
		insn{load, 0x67, protocol, 0},
		insn{move, 0x61, 0, 0},
		insn{move, 0xa2, 0, 0},
		insn{addK, 0x02, 0, -int32(tuple)},
		insn{moveK, 0x03, 0, int32(tuple)},
		insn{moveK, 0x04, 0, ownNamespace},
		insn{moveK, 0x05, 0, 0},
		insn{jeqK, 0x07, 2, unix.IPPROTO_UDP},
		insn{call, 0, 0, lookupTCP},
		insn{jump, 0, 1, 0},
		insn{call, 0, 0, lookupUDP},
		insn{jne64K, 0x00, int16(len(instead) + 1), 0},
	)
	code = append(code, instead...)
	code = append(code,
		insn{jump, 0, toOut, 0},
		insn{move, 0x01, 0, 0},
		insn{call, 0, 0, releaseSocket},
	)
	return ended(code)
}

// homeward shows who is at that other address as being at 127.0.0.1.
func homeward(six bool, from int32) []insn {
	ip, code := addressOf(six)
	code = append(code,
		insn{load, 0x62, ip, 0},
		insn{jneK, 0x02, toOut, from},
		insn{moveK32, 0x02, 0, int32(binary.NativeEndian.Uint32([]byte{127, 0, 0, 1}))},
		insn{store, 0x26, ip, 0},
	)
	return ended(code)
}

// addressOf begins a program: r6 is its context, in which an address of IPv4 is at ip.
// For others it ends.
func addressOf(six bool) (ip int16, code []insn) {
	code = []insn{{move, 0x16, 0, 0}}
	if !six {
		return userIP4, code
	}
	for i, want := range []int32{0, 0, mapped} {
		code = append(code, insn{load, 0x62, userIP6 + int16(4*i), 0}, insn{jneK, 0x02, toOut, want})
	}
	return userIP6 + 12, code
}

// ended is a program with its end, which allows what was asked.
func ended(code []insn) []insn {
	for i := range code {
		if code[i].off == toOut {
			code[i].off = int16(len(code) - i - 1)
		}
	}
	return append(code, insn{moveK, 0x00, 0, 1}, insn{exit, 0, 0, 0})
}

// attachProgram leaves a program with the cgroup, which holds it from then on.
func attachProgram(group *os.File, kind uint32, code []insn) error {
	name := []byte("none\x00") // of the helpers none wants another licence
	var pinned runtime.Pinner  // their addresses are numbers, which no collector sees
	defer pinned.Unpin()
	pinned.Pin(&code[0])
	pinned.Pin(&name[0])
	load := struct {
		kind, count    uint32
		code, licence  uint64
		level, logSize uint32
		log            uint64
		kernel, flags  uint32
		name           [16]byte
		device, attach uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, count: uint32(len(code)), code: address(&code[0]), licence: address(&name[0]),
		name: [16]byte{'s', 'k', 'e', 'p'}, attach: kind,
	}
	program, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return fmt.Errorf("loading a program: %w", err)
	}
	defer unix.Close(int(program))
	attach := struct{ target, program, kind, flags uint32 }{uint32(group.Fd()), uint32(program), kind, unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attaching a program: %w", err)
	}
	return nil
}

func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}
