//go:build !linux || !amd64

package sys

import (
	"context"
	"errors"
	"time"
)

// ErrKVMSlow is the result of a self-test that did not end in time.
var ErrKVMSlow = errors.New("its guest is emulated in software: too slow for a kernel")

// KVMSelfTest is for Linux on amd64 only.
func KVMSelfTest(context.Context, uint32, time.Duration) (time.Duration, error) {
	return 0, errors.ErrUnsupported
}
