package test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// look is what was left of a daemon's work at a moment when nothing was asked.
type look struct {
	When   string
	At     time.Time
	Daemon int // which since the beginning, as it is killed and started again
	Uptime time.Duration

	Descriptors, Goroutines    int
	ResidentMiB, HeapMiB       float64
	Processes, Namespaces      int
	RunDirs, MemDirs, Cgroups  int
	Snapshots, Images, LogDirs int
	DataMiB                    float64
}

// What may come and go while nothing is asked: processes that wait for the
// functions that were used last, network slots made ahead, descriptors of both.
const (
	soakShells          = 8
	soakSlots           = soakShells + 16 // those that are kept for the next
	soakMoreDescriptors = 24
	soakMoreGoroutines  = 64
	soakMoreMiB         = 96
)

// look waits until nothing runs, and for what should go away to have gone. What
// stays is a fault.
func (s *soak) look(when string) {
	s.calls.Lock()
	defer s.calls.Unlock()
	s.settle()
	for name := range soakFunctions {
		s.d.gone(name)
	}
	s.prune()
	var l look
	var err error
	for deadline := time.Now().Add(testenv.Limit(s.t, 30*time.Second)); ; time.Sleep(200 * time.Millisecond) {
		if l, err = s.measure(when); err == nil {
			err = s.judge(l)
		}
		if err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		s.ledger.fault("%s, with no request since: %v", when, err)
	}
	s.ledger.note(l)
	s.looks = append(s.looks, l)
	s.t.Logf("%s: %+v", when, l)
}

func (s *soak) measure(when string) (l look, err error) {
	pid := s.d.cmd.Process.Pid
	l = look{When: when, At: time.Now(), Daemon: s.ledger.daemons(), Uptime: time.Since(s.ledger.daemonSince()).Round(time.Second)}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return l, err
	}
	l.Descriptors = len(fds)
	metrics, err := s.metrics()
	if err != nil {
		return l, err
	}
	l.Goroutines = int(metrics["go_goroutines"])
	l.HeapMiB = metrics["go_memstats_heap_inuse_bytes"] / (1 << 20)
	l.ResidentMiB = metrics["process_resident_memory_bytes"] / (1 << 20)
	for what := range leftovers(s.d.data()) {
		switch kind, _, _ := strings.Cut(what, " "); kind {
		case "process":
			l.Processes++
		case "namespace":
			l.Namespaces++
		case "run":
			l.RunDirs++
		case "cgroup":
			if !ownCgroup(what) {
				l.Cgroups++
			}
		case "half-made", "mount":
			return l, fmt.Errorf("there is a %s", what)
		}
	}
	l.MemDirs, l.Images = entries(s.d.data(), "mem"), entries(s.d.data(), "images")
	l.Snapshots, l.LogDirs = entries(s.d.data(), "snapshots"), entries(s.d.data(), "logs")
	snaps, err := s.d.client.Snapshots(s.d.ctx(30*time.Second), "")
	if err == nil && len(snaps) != l.Snapshots {
		err = fmt.Errorf("%d directories of snapshots, and %d snapshots", l.Snapshots, len(snaps))
	}
	l.DataMiB = float64(occupied(s.d.data())) / (1 << 20)
	return l, err
}

// judge says what is too much, also beside a look at the beginning.
func (s *soak) judge(l look) error {
	var too []string
	atMost := func(what string, n, most int) {
		if n > most {
			too = append(too, fmt.Sprintf("%d %s, at most %d are right", n, what, most))
		}
	}
	atMost("VMM processes", l.Processes, soakShells)
	atMost("network namespaces", l.Namespaces, soakSlots)
	atMost("run directories", l.RunDirs, l.Processes)
	atMost("directories of guest memory", l.MemDirs, l.Processes)
	atMost("cgroups of machines", l.Cgroups, l.Processes)
	atMost("images", l.Images, 1) // all functions have the same
	atMost("directories of logs", l.LogDirs, len(soakFunctions))
	atMost("snapshots", l.Snapshots, 2*len(soakFunctions))
	if len(s.looks) > 1 { // the first is of a daemon that has not done much yet
		first := s.looks[1]
		atMost("descriptors", l.Descriptors, first.Descriptors+soakMoreDescriptors)
		atMost("goroutines", l.Goroutines, first.Goroutines+soakMoreGoroutines)
		atMost("MiB of heap", int(l.HeapMiB), int(first.HeapMiB)+soakMoreMiB)
		atMost("MiB resident", int(l.ResidentMiB), 2*int(first.ResidentMiB)+soakMoreMiB)
	}
	if len(too) > 0 {
		return fmt.Errorf("left over: %s", strings.Join(too, "; "))
	}
	return nil
}

// metrics asks the daemon for its numbers that have no labels.
func (s *soak) metrics() (map[string]float64, error) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.d.socket())
		}}}
	resp, err := client.Get("http://skep/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				out[name] = v
			}
		}
	}
	return out, nil
}

// entries counts what is in a directory, but for what begins with a dot.
func entries(path ...string) int {
	es, _ := os.ReadDir(filepath.Join(path...))
	return len(slices.DeleteFunc(es, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }))
}

// occupied is the size of a tree in blocks, holes not counted.
func occupied(dir string) (n int64) {
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away
		}
		if info, err := e.Info(); err == nil {
			n += blocks(info)
		}
		return nil
	})
	return n
}
