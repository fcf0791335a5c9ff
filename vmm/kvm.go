package vmm

import (
	"context"
	"errors"
)

// HardwareKVM finds out whether /dev/kvm is backed by hardware.
func HardwareKVM(ctx context.Context) error { return errors.New("not probed yet") }
