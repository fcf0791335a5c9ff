package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// A process's limits are set by the agent, which may raise what the process may
// not, before the first instruction of its program. In between the child is this
// program once more: it waits at a gate, and runs the other in its place.

// gateName is argv[0] of a program that is such a gate.
const gateName = "skep-gate"

// Descriptors of the gate: itself, what it waits for, and where it says why the
// program could not be run.
const (
	gateSelf = 3
	gateWait = 4
	gateTell = 5
)

// IsGate says that this process is one; Gate is all that it does then. It does
// not return.
func IsGate() bool { return len(os.Args) > 2 && os.Args[0] == gateName }

// Gate waits until its limits are set and runs the program that its arguments
// name, in its place.
func Gate() {
	path, err1 := unix.BytePtrFromString(os.Args[1])
	argv, err2 := syscall.SlicePtrFromStrings(os.Args[2:])
	envv, err3 := syscall.SlicePtrFromStrings(os.Environ())
	if errors.Join(err1, err2, err3) != nil {
		os.Exit(127)
	}
	for _, fd := range []int{gateSelf, gateWait, gateTell} {
		unix.CloseOnExec(fd)
	}
	var b [4]byte // no error so far: it stands at the gate
	// Raw, so that the runtime starts no thread from here on, for which a limit may
	// leave no room. Sound: b, path, argv and envv live until after the calls.
	unix.RawSyscall(unix.SYS_WRITE, gateTell, uintptr(unsafe.Pointer(&b[0])), 4)
	unix.RawSyscall(unix.SYS_READ, gateWait, uintptr(unsafe.Pointer(&b[0])), 1)
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])))
	binary.NativeEndian.PutUint32(b[:], uint32(e))
	unix.RawSyscall(unix.SYS_WRITE, gateTell, uintptr(unsafe.Pointer(&b[0])), 4)
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
}

// resources are the limits' numbers, which are the same on all machines that skep
// runs on.
var resources = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// enoughFiles is how many the agent needs to open while it forks.
const enoughFiles = 1024

// forkLimited forks with these limits, and calls ready, if it is not nil, with the
// first process of a namespace before that runs its program. The limit of open files the agent can bear
// itself meanwhile, unless it is low, which saves the gate.
func (l launch) forkLimited(limits []guest.Rlimit, ready func(pid int) error) (int, error) {
	gated := false
	for _, r := range limits {
		resource, ok := resources[r.Type]
		switch {
		case !ok:
			return 0, fmt.Errorf("unknown resource limit %q", r.Type)
		case r.Soft > r.Hard:
			return 0, fmt.Errorf("%s: its soft limit %d is above the hard one, %d", r.Type, r.Soft, r.Hard)
		case resource == unix.RLIMIT_NOFILE && r.Soft >= enoughFiles:
			l.files = unix.Rlimit{Cur: r.Soft, Max: r.Hard}
		default:
			gated = true
		}
	}
	if !gated && !l.init {
		return l.fork()
	}
	return l.forkGated(limits, ready)
}

// forkGated calls ready while the child waits at the gate.
func (l launch) forkGated(limits []guest.Rlimit, ready func(pid int) error) (pid int, err error) {
	self, err := os.OpenFile("/proc/self/exe", unix.O_PATH, 0)
	if err != nil {
		return 0, err
	}
	defer self.Close()
	wait, open, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer open.Close()
	defer wait.Close()
	hear, tell, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer hear.Close()
	defer tell.Close()
	gate := l
	gate.path, gate.argv = fmt.Sprintf("/proc/self/fd/%d", gateSelf), append([]string{gateName, l.path}, l.argv...)
	gate.streams = append(append([]*os.File(nil), l.streams...), self, wait, tell)
	if pid, err = gate.fork(); err != nil {
		return 0, err
	}
	tell.Close()
	var b [4]byte
	if _, err := io.ReadFull(hear, b[:]); err != nil {
		return 0, fmt.Errorf("waiting until its limits can be set: %w", err)
	}
	if err := l.limit(pid, limits); err != nil {
		return 0, errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	if l.init && ready != nil {
		if err := ready(pid); err != nil {
			return 0, errors.Join(err, unix.Kill(pid, unix.SIGKILL))
		}
	}
	open.Close()
	switch _, err := io.ReadFull(hear, b[:]); err {
	case io.EOF: // closed by the program
		return pid, nil
	case nil:
		return 0, syscall.Errno(binary.NativeEndian.Uint32(b[:]))
	default:
		return 0, err
	}
}

// limit sets a waiting child's limits; that of open files in any case: the gate's
// runtime has changed it.
func (l launch) limit(pid int, limits []guest.Rlimit) error {
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &l.files, nil); err != nil {
		return fmt.Errorf("limiting its open files: %w", err)
	}
	for _, r := range limits {
		if err := unix.Prlimit(pid, resources[r.Type], &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil); err != nil {
			return fmt.Errorf("limiting its %s: %w", r.Type, err)
		}
	}
	return nil
}
