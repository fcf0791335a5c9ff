package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/sys"
)

// The self-test guest executes two instructions a round. Hardware does these
// in a few milliseconds, and so, ten times slower, does a hypervisor below
// another, busy or emulated as it may be; a software KVM needs seven seconds.
const (
	kvmRounds = 5_000_000
	kvmLimit  = time.Second
)

// HardwareKVM finds out whether /dev/kvm can run kernels at the hardware's
// speed. A device of that name proves nothing: it may be a software emulation
// under which no stock kernel ends its boot. So the processor's flags are read,
// and then a guest of a few instructions is timed. The error says what is
// missing and, where that is known, how to mend it. It takes at most about a
// second.
func HardwareKVM(ctx context.Context) error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return fmt.Errorf("reading the processor's flags: %w", err)
	}
	if !hasVirtualization(string(info)) {
		return errors.New("the processor has no hardware virtualisation (neither vmx nor svm): turn it on in the firmware, or, in a virtual machine, turn on nested virtualisation")
	}
	if _, err := sys.KVMSelfTest(ctx, kvmRounds, kvmLimit); err != nil {
		return fmt.Errorf("trying /dev/kvm: %w%s", err, kvmCure(err))
	}
	return nil
}

func kvmCure(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return ": load the module: modprobe kvm-intel, or kvm-amd"
	case errors.Is(err, os.ErrPermission):
		return ": run as root, or join the group that owns it"
	}
	return ""
}

// hasVirtualization looks into the text of /proc/cpuinfo.
func hasVirtualization(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, f := range strings.Fields(flags) {
			if f == "vmx" || f == "svm" {
				return true
			}
		}
	}
	return false
}
