package shim

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
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
	Snapshot  snapshotUse
	ReadyPath string   // of the server, which answers there when it is ready; "": none is known
	ReadyCmd  []string // that ends with 0 in the container when it is ready; the same
}

// snapshotUse says from which snapshots a container may start.
type snapshotUse string

const (
	snapshotAuto  snapshotUse = ""      // ready ones, unless something secret would be in them, and base ones
	snapshotReady snapshotUse = "ready" // ready ones, whatever is in its environment
	snapshotBase  snapshotUse = "base"  // base ones only
	snapshotOff   snapshotUse = "off"   // it boots
)

// Annotations, all below one prefix.
const (
	annotationPrefix   = "skep.dev/"
	annotationPolicy   = annotationPrefix + "policy"
	annotationPort     = annotationPrefix + "port"
	annotationMemory   = annotationPrefix + "memory"
	annotationVCPUs    = annotationPrefix + "vcpus"
	annotationSnapshot = annotationPrefix + "snapshot"
	annotationPath     = annotationPrefix + "ready-path"
	annotationCommand  = annotationPrefix + "ready-command"
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
		switch s.Snapshot = snapshotUse(v); s.Snapshot {
		case "on":
			s.Snapshot = snapshotAuto
		case snapshotReady, snapshotBase, snapshotOff:
		default:
			return fmt.Errorf("want on, ready, base or off")
		}
		return nil
	},
	annotationPath: func(s *settings, v string) error {
		if u, err := url.Parse(v); err != nil || v == "" || v[0] != '/' || u.Fragment != "" {
			return fmt.Errorf("want a path, such as /healthz")
		}
		s.ReadyPath = v
		return nil
	},
	annotationCommand: func(s *settings, v string) error {
		if !strings.HasPrefix(v, "[") {
			s.ReadyCmd = []string{"/bin/sh", "-c", v}
		} else if err := json.Unmarshal([]byte(v), &s.ReadyCmd); err != nil {
			return fmt.Errorf(`want a command for /bin/sh, or an array such as ["/bin/check", "-q"]: %w`, err)
		}
		if len(s.ReadyCmd) == 0 || s.ReadyCmd[0] == "" || v == "" {
			return fmt.Errorf("want a command")
		}
		return nil
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
