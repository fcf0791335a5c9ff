package sys

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

func needKVM(t *testing.T) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs a /dev/kvm, of whatever kind: %v; run: modprobe kvm", err)
	}
	f.Close()
}

// A few rounds end under a software emulation too, so this shows that the
// guest is right wherever there is any /dev/kvm.
func TestKVMSelfTestEnds(t *testing.T) {
	needKVM(t)
	took, err := KVMSelfTest(t.Context(), 1000, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("1000 rounds in %v", took)
}

// A guest that would go on for minutes under any KVM is stopped.
func TestKVMSelfTestIsStopped(t *testing.T) {
	needKVM(t)
	if _, err := KVMSelfTest(t.Context(), 1<<32-1, 50*time.Millisecond); !errors.Is(err, ErrKVMSlow) {
		t.Errorf("limit: %v; want ErrKVMSlow", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := KVMSelfTest(ctx, 1<<32-1, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v; want Canceled", err)
	}
}
