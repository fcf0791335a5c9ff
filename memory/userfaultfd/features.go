package userfaultfd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Feature is a set of UFFD_FEATURE_ bits.
type Feature uint64

// Features of the kernel's userfaultfd. Which of them there are is found by
// Probe, never by the kernel's version.
const (
	FeaturePagefaultFlagWP  Feature = 1 << 0
	FeatureEventFork        Feature = 1 << 1
	FeatureEventRemap       Feature = 1 << 2
	FeatureEventRemove      Feature = 1 << 3
	FeatureMissingHugetlbfs Feature = 1 << 4
	FeatureMissingShmem     Feature = 1 << 5
	FeatureEventUnmap       Feature = 1 << 6
	FeatureSigbus           Feature = 1 << 7
	FeatureThreadID         Feature = 1 << 8
	FeatureMinorHugetlbfs   Feature = 1 << 9
	FeatureMinorShmem       Feature = 1 << 10
	FeatureExactAddress     Feature = 1 << 11
	FeatureWPHugetlbfsShmem Feature = 1 << 12
	FeatureWPUnpopulated    Feature = 1 << 13
	FeaturePoison           Feature = 1 << 14
	FeatureWPAsync          Feature = 1 << 15
	FeatureMove             Feature = 1 << 16
)

const apiVersion = 0xAA

var featureNames = [...]string{
	"pagefault-flag-wp", "event-fork", "event-remap", "event-remove", "missing-hugetlbfs", "missing-shmem",
	"event-unmap", "sigbus", "thread-id", "minor-hugetlbfs", "minor-shmem", "exact-address", "wp-hugetlbfs-shmem",
	"wp-unpopulated", "poison", "wp-async", "move",
}

// String lists the features by name.
func (f Feature) String() string {
	var names []string
	for bit := 0; bit < 64; bit++ {
		switch {
		case f&(1<<bit) == 0:
		case bit < len(featureNames):
			names = append(names, featureNames[bit])
		default:
			names = append(names, fmt.Sprintf("bit %d", bit))
		}
	}
	return strings.Join(names, ",")
}

// Has reports whether all of want are in f.
func (f Feature) Has(want Feature) bool { return f&want == want }

// Ioctls is a set of the calls that the kernel allows on a registered range.
type Ioctls uint64

func (i Ioctls) has(nr uint) bool { return i&(1<<nr) != 0 }

// CanCopy and the others report whether a registered range takes that call.
func (i Ioctls) CanCopy() bool         { return i.has(0x03) }
func (i Ioctls) CanZeroPage() bool     { return i.has(0x04) }
func (i Ioctls) CanMove() bool         { return i.has(0x05) }
func (i Ioctls) CanWriteProtect() bool { return i.has(0x06) }
func (i Ioctls) CanContinue() bool     { return i.has(0x07) }
func (i Ioctls) CanPoison() bool       { return i.has(0x08) }

// ErrUnsupported means that this kernel, or this process's rights, do not
// allow a userfaultfd that guest memory can be served with.
var ErrUnsupported = errors.New("userfaultfd is not usable here")

// Probe asks the kernel which features its userfaultfd has, by making one and
// throwing it away.
func Probe() (Feature, error) {
	fd, err := New()
	if err != nil {
		return 0, err
	}
	defer fd.Close()
	return fd.API(0)
}

// explainNew turns the error of making a userfaultfd into what to do about it.
func explainNew(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: the kernel was built without CONFIG_USERFAULTFD: %w", ErrUnsupported, err)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: run as root, or give access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("making a userfaultfd: %w", err)
}
