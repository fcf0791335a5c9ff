package experiment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// available is the memory that the host could still give away, in bytes.
func available() (int64, error) { return kibOf("/proc/meminfo", "MemAvailable") }

// pageTables is what a process's page tables take.
func pageTables(pid int) (int64, error) {
	return kibOf(fmt.Sprintf("/proc/%d/status", pid), "VmPTE")
}

// kibOf finds a line "field: 12 kB" and returns it in bytes.
func kibOf(file, field string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s says nothing of %s", file, field)
}

// Where the kernel's merging of equal pages is switched.
const ksmDir = "/sys/kernel/mm/ksm"

// mergeable says that this kernel merges equal pages of whole processes (Linux 6.7: a
// program that is executed inherits it).
func mergeable() bool {
	_, err := unix.PrctlRetInt(unix.PR_GET_MEMORY_MERGE, 0, 0, 0, 0)
	_, none := os.Stat(filepath.Join(ksmDir, "full_scans"))
	return err == nil && none == nil && os.Geteuid() == 0
}

// merging has the kernel merge equal pages of the processes that this one starts.
type merging struct{ before map[string]string } // the host's settings

// startMerging has this process's children merged, by a kernel that looks at as many
// pages as it can: what can be saved is asked, not what looking costs.
func startMerging() (*merging, error) {
	k := &merging{before: map[string]string{}}
	for _, s := range []struct{ name, value string }{{"pages_to_scan", "100000"}, {"sleep_millisecs", "10"}, {"run", "1"}} {
		old, err := os.ReadFile(filepath.Join(ksmDir, s.name))
		if err == nil {
			k.before[s.name] = string(bytes.TrimSpace(old))
			err = setKSM(s.name, s.value)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("having equal pages merged: %w", err), k.stop())
		}
	}
	if err := unix.Prctl(unix.PR_SET_MEMORY_MERGE, 1, 0, 0, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("having equal pages merged: %w", err), k.stop())
	}
	return k, nil
}

// settle waits until the kernel has gone through all pages thrice: a page is merged
// when it has not changed between two looks.
func (k *merging) settle(ctx context.Context) error {
	first := -1
	for {
		b, err := os.ReadFile(filepath.Join(ksmDir, "full_scans"))
		if err != nil {
			return err
		}
		scans, err := strconv.Atoi(string(bytes.TrimSpace(b)))
		if err != nil {
			return err
		}
		if first < 0 {
			first = scans
		}
		if scans >= first+4 { // the first of them had begun
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for equal pages to be merged: %w", err)
		}
	}
}

// stop takes merged pages apart and gives the host its settings back.
func (k *merging) stop() error {
	err := unix.Prctl(unix.PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
	if k.before["run"] != "" && k.before["run"] != "1" {
		err = errors.Join(err, setKSM("run", "2"))
	}
	for name, value := range k.before {
		err = errors.Join(err, setKSM(name, value))
	}
	return err
}

func setKSM(name, value string) error {
	return os.WriteFile(filepath.Join(ksmDir, name), []byte(value), 0)
}
