package memory_test

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/skep-dev/skep/memory/userfaultfd/uffdtest"
)

// TestSoak restores over and over and looks for what grows: heap, resident
// memory, descriptors, goroutines. SKEP_SOAK_RESTORES=10000 says how often; 300 without.
func TestSoak(t *testing.T) {
	times := 300
	if s := os.Getenv("SKEP_SOAK_RESTORES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 20 {
			t.Fatalf("SKEP_SOAK_RESTORES=%s: want a number of restores, 20 or more", s)
		}
		times = n
	}
	const pages = 1024
	im, table := newImage(t, pages), newPolicies(t)
	record(t, table, im, shuffled(pages, 4))
	policies := []string{"stream", "stream", "reap", "wsfile", "lazy", "parallel", "resident"}
	op := uffdtest.Op{Pages: shuffled(pages, 5)}
	var first usage
	const batch = 10 // what a batch is done with is let go at its end
	for i := 0; i < times; i += batch {
		t.Run("", func(t *testing.T) {
			for j := range batch {
				s := open(t, table, policies[(i+j)%len(policies)], im.Source)
				p := restore(t, s, one(pages))
				sums, err := p.Do(op)
				if err != nil {
					t.Fatal(err, s.Err())
				}
				im.check(t, []uffdtest.Op{op}, sums)
				s.Responded()
				p.Kill()
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
		if i/batch == times/10/batch {
			first = used()
		}
	}
	last := used()
	t.Logf("after %d restores %+v, after %d %+v", times/10+1, first, times, last)
	if grown := int64(last.heap) - int64(first.heap); grown > 2<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if grown := last.rssKiB - first.rssKiB; grown > 24<<10 {
		t.Errorf("resident memory has grown by %d KiB", grown)
	}
	if last.fds > first.fds || last.goroutines > first.goroutines+2 {
		t.Errorf("descriptors or goroutines stay behind: %+v, then %+v", first, last)
	}
}

type usage struct {
	heap            uint64 // bytes in live objects
	rssKiB          int64
	fds, goroutines int
}

func used() usage {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, _ := os.ReadDir("/proc/self/fd")
	return usage{heap: m.HeapAlloc, rssKiB: rss(), fds: len(fds), goroutines: runtime.NumGoroutine()}
}

func rss() (kib int64) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ = strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return kib
}
