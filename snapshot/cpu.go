package snapshot

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// HostCPU reads what this host's processor is from /proc/cpuinfo.
func HostCPU() (CPU, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return CPU{}, fmt.Errorf("reading the host's processor: %w", err)
	}
	defer f.Close()
	return parseCPU(f)
}

// HostKernel is the release of this host's kernel, as uname(2) has it.
func HostKernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// parseCPU reads the first processor of a cpuinfo file: x86 or arm64.
func parseCPU(r io.Reader) (CPU, error) {
	var c CPU
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		key, value, ok := strings.Cut(s.Text(), ":")
		if !ok {
			if c.Features != nil {
				break // the end of the first processor
			}
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "vendor_id", "CPU implementer":
			c.Vendor = value
		case "model name", "CPU part":
			c.Model = value
		case "flags", "Features":
			c.Features = strings.Fields(value)
			slices.Sort(c.Features)
		}
	}
	if err := s.Err(); err != nil {
		return CPU{}, fmt.Errorf("reading the host's processor: %w", err)
	}
	if c.Features == nil {
		c.Features = []string{}
	}
	return c, nil
}
