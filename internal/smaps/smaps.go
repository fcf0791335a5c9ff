// Package smaps reads what a process has mapped, as the kernel counts it: where memory
// is measured, a VMM's own is to be told from its guest's.
package smaps

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Mapping is one of a process's. Sizes are in bytes.
type Mapping struct {
	Start, End     uint64 // addresses
	Size, RSS, PSS int64
}

// Of are the mappings of a process.
func Of(pid int) ([]Mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := parse(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return all, nil
}

func parse(r io.Reader) (all []Mapping, err error) {
	s := bufio.NewScanner(r)
	var next Mapping
	for s.Scan() {
		field, value, _ := strings.Cut(s.Text(), ":")
		if field == "Size" { // the first of each
			all, next = append(all, next), Mapping{}
		} else if m, ok := addresses(field); ok {
			next = m
		}
		var to *int64
		switch field {
		case "Size", "Rss", "Pss":
			if len(all) == 0 {
				return nil, fmt.Errorf("it begins with %q", s.Text())
			}
			m := &all[len(all)-1]
			to = map[string]*int64{"Size": &m.Size, "Rss": &m.RSS, "Pss": &m.PSS}[field]
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return nil, err
		}
		*to = kib << 10
	}
	return all, s.Err()
}

// addresses are those of a line like
//
//	7f0000000000-7f0008000000 rw-p 00000000 00:00 0
func addresses(line string) (m Mapping, ok bool) {
	from, rest, _ := strings.Cut(line, "-")
	to, _, _ := strings.Cut(rest, " ")
	var errs [2]error
	m.Start, errs[0] = strconv.ParseUint(from, 16, 64)
	m.End, errs[1] = strconv.ParseUint(to, 16, 64)
	return m, errs[0] == nil && errs[1] == nil
}

// Spanning are the mappings that together are so many bytes without a gap: of memory that
// was mapped as one, and may have been split since. None: there are none.
func Spanning(all []Mapping, size int64) []Mapping {
	for i := range all {
		for j := i; j < len(all) && (j == i || all[j].Start == all[j-1].End); j++ {
			switch have := int64(all[j].End - all[i].Start); {
			case have == size:
				return all[i : j+1]
			case have > size:
				j = len(all)
			}
		}
	}
	return nil
}

// guestLeast is smaller than any guest's memory, and larger than what else processes map.
const guestLeast = 120 << 20

// Beside is the PSS of a process beside a guest's memory, and that of the guest's: the
// largest mapping that may be one.
func Beside(all []Mapping) (own, guest int64) {
	var largest int64
	for _, m := range all {
		own += m.PSS
		if m.Size >= guestLeast && m.Size > largest {
			largest, guest = m.Size, m.PSS
		}
	}
	return own - guest, guest
}
