package agent

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// capSet has a bit for each capability.
type capSet uint64

// capabilityNames are the kernel's (linux/capability.h), by number.
var capabilityNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

func capSetOf(names []string) (s capSet, err error) {
next:
	for _, name := range names {
		for i, n := range capabilityNames {
			if n == name {
				s |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("unknown capability %q", name)
	}
	return s, nil
}

func (s capSet) list() (caps []uintptr) {
	for ; s != 0; s &= s - 1 {
		caps = append(caps, uintptr(bits.TrailingZeros64(uint64(s))))
	}
	return caps
}

// capabilities are what is left of an OCI runtime's five sets when a program is
// executed: from then on the kernel makes the permitted and the effective set of
// these three, and of the user and the file.
type capabilities struct{ bounding, inheritable, ambient capSet }

func capabilitiesOf(c *guest.Capabilities) (*capabilities, error) {
	if c == nil {
		return nil, nil
	}
	var sets [5]capSet
	for i, names := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
		var err error
		if sets[i], err = capSetOf(names); err != nil {
			return nil, err
		}
	}
	bounding, permitted, inheritable, ambient := sets[0], sets[2], sets[3], sets[4]
	// The kernel has no ambient one that is not in both of these.
	return &capabilities{bounding: bounding, inheritable: inheritable & bounding, ambient: ambient & permitted & inheritable}, nil
}

// take gives the calling thread the bounding and the inheritable set. The ambient
// one comes when the child has its user.
func (c *capabilities) take() error {
	for i := range capabilityNames {
		if c.bounding&(1<<i) != 0 {
			continue
		}
		// EINVAL: an older kernel than the list.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(i), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("dropping %s: %w", capabilityNames[i], err)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	for i := range data {
		data[i].Inheritable = uint32(c.inheritable >> (32 * i))
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("setting inheritable capabilities: %w", err)
	}
	return nil
}
