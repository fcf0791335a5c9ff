package shim

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/skep-dev/skep/internal/suggest"
	"github.com/skep-dev/skep/memory"
)

// settings are what a container's annotations say beside its specification.
type settings struct {
	Policy    string // of memory, for restores; "": the default
	Port      int    // that the container's server listens at; 0: none is known
	MemoryMiB int    // of the guest; 0: by the container's limit
	VCPUs     int    // the same
	Boot      bool   // without a snapshot
}

// Annotations, all below one prefix.
const (
	annotationPrefix   = "skep.dev/"
	annotationPolicy   = annotationPrefix + "policy"
	annotationPort     = annotationPrefix + "port"
	annotationMemory   = annotationPrefix + "memory"
	annotationVCPUs    = annotationPrefix + "vcpus"
	annotationSnapshot = annotationPrefix + "snapshot"
)

// policies are the names of those of memory.
var policies = sync.OnceValue(func() []string {
	table := memory.New(memory.Options{})
	defer table.Close()
	return table.Names()
})

var annotations = map[string]func(s *settings, v string) error{
	annotationContainer: func(*settings, string) error { return nil }, // chooser's
	annotationPolicy: func(s *settings, v string) error {
		if known := policies(); !slices.Contains(known, v) {
			return fmt.Errorf("there is no such memory policy%s (there are %s)", suggest.Text(v, known), strings.Join(known, ", "))
		}
		s.Policy = v
		return nil
	},
	annotationPort: func(s *settings, v string) (err error) { s.Port, err = number(v, 1, 65535); return err },
	annotationMemory: func(s *settings, v string) (err error) {
		mib := 0
		switch n, unit := strings.CutSuffix(v, "Gi"); {
		case unit:
			mib, err = number(n, 1, maxMemoryMiB>>10)
			mib <<= 10
		default:
			mib, err = number(strings.TrimSuffix(v, "Mi"), minMemoryMiB, maxMemoryMiB)
		}
		if err != nil {
			return fmt.Errorf("want at least %dMi, such as 512Mi or 2Gi", minMemoryMiB)
		}
		s.MemoryMiB = mib
		return nil
	},
	annotationVCPUs: func(s *settings, v string) (err error) { s.VCPUs, err = number(v, 1, maxVCPUs); return err },
	annotationSnapshot: func(s *settings, v string) error {
		switch v {
		case "on", "off":
			s.Boot = v == "off"
			return nil
		}
		return fmt.Errorf("want on or off")
	},
}

func number(v string, lo, hi int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi || strconv.Itoa(n) != v {
		return 0, fmt.Errorf("want a number from %d to %d", lo, hi)
	}
	return n, nil
}

// readSettings reads annotations. One of skep's that is not known is an error:
// it would be ignored.
func readSettings(all map[string]string) (s settings, err error) {
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(k, annotationPrefix) {
			continue
		}
		set, ok := annotations[k]
		if !ok {
			known := slices.Sorted(maps.Keys(annotations))
			return s, fmt.Errorf("there is no annotation %s%s (there are %s)", k, suggest.Text(k, known), strings.Join(known, ", "))
		}
		if err := set(&s, all[k]); err != nil {
			return s, fmt.Errorf("annotation %s is %q: %w", k, all[k], err)
		}
	}
	return s, nil
}
