package vmm

import (
	"os"
	"testing"
)

func TestHasVirtualization(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       bool
	}{
		{"intel", "processor\t: 0\nflags\t\t: fpu vme vmx sse\n", true},
		{"amd", "flags\t\t: fpu svm", true},
		{"none", "flags\t\t: fpu vmxnet svm_lock\nvmx flags\t: vnmi\nbugs\t\t: svm\n", false},
		{"empty", "", false},
	} {
		if got := hasVirtualization(test.text); got != test.want {
			t.Errorf("%s: %v; want %v", test.name, got, test.want)
		}
	}
}

// Whatever the answer here is, it comes, and agrees with the flags.
func TestHardwareKVM(t *testing.T) {
	err := HardwareKVM(t.Context())
	t.Logf("HardwareKVM: %v", err)
	info, readErr := os.ReadFile("/proc/cpuinfo")
	if readErr != nil {
		t.Fatal(readErr)
	}
	if err == nil && !hasVirtualization(string(info)) {
		t.Error("KVM without the processor's help")
	}
}
