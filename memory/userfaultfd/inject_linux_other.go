//go:build linux && !amd64

package userfaultfd

import (
	"fmt"
	"runtime"
)

func (t *tracee) syscall(nr uint64, args ...uint64) (int, error) {
	return 0, fmt.Errorf("%w: injecting a system call is not written for %s", ErrUnsupported, runtime.GOARCH)
}
