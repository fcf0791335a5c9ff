package userfaultfd

import (
	"encoding/binary"
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// StartUnadvised starts cmd, whose advice to use huge pages for its memory the kernel
// will refuse (EINVAL, as kernels without them do), and that of its children. With
// the advice the kernel reads megabytes around each fault on a mapped file;
// prctl(PR_SET_THP_DISABLE) does not keep it from that.
//
// The system calls that install the filter are made as those of Start are, whose other
// terms hold here too. The child has no_new_privs from then on.
func StartUnadvised(cmd *exec.Cmd, before ...func() error) error {
	if err := checkTraceable(cmd); err != nil {
		return fmt.Errorf("starting %s without advice of huge pages: %w", cmd.Path, err)
	}
	return startTraced(cmd, before, func(t *tracee) error {
		if err := t.refuseAdvice(); err != nil {
			return fmt.Errorf("having %s not advise huge pages: %w", cmd.Path, err)
		}
		return nil
	})
}

// adviceFilter refuses madvise(…, MADV_HUGEPAGE) and lets everything else be. The
// offsets are those of struct seccomp_data: arch, nr, and the low half of the third
// argument.
var adviceFilter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jf: 5},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MADVISE, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 32},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.MADV_HUGEPAGE, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
	{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
}

func (t *tracee) refuseAdvice() error {
	if _, err := t.syscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	// struct sock_fprog, and the program right behind it. They need to be there for
	// the call alone, so they lie where nothing is yet: below the stack pointer.
	const head = 16
	addr, err := t.belowStack(head + 8*len(adviceFilter))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(len(adviceFilter)))
	b = le.AppendUint64(b, addr+head)
	for _, f := range adviceFilter {
		b = le.AppendUint16(b, f.Code)
		b = append(b, f.Jt, f.Jf)
		b = le.AppendUint32(b, f.K)
	}
	if err := t.write(addr, b); err != nil {
		return err
	}
	if _, err := t.syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, addr); err != nil {
		return fmt.Errorf("seccomp(SECCOMP_SET_MODE_FILTER): %w", err)
	}
	return nil
}
