package workingset

import "time"

// Summary says what a trace or a working set is made of, for people.
type Summary struct {
	Pages      int64         `json:"pages"`
	ZeroPages  int64         `json:"zero_pages"`
	Runs       int           `json:"runs"`
	Contiguity float64       `json:"contiguity_pages"` // pages of a run, on average
	LongestRun int           `json:"longest_run_pages"`
	ZeroShare  float64       `json:"zero_share"`  // of the pages
	GuestShare float64       `json:"guest_share"` // pages of all pages of the guest
	Bytes      int64         `json:"bytes"`       // of contents
	Writes     int64         `json:"writes"`      // trace only: first touches that were writes
	Span       time.Duration `json:"span_ns"`     // trace only: until the last first touch
}

// Summarize describes runs of a guest with that much memory.
func Summarize(runs []Run, memorySize int64) Summary {
	s := Summary{Runs: len(runs)}
	for _, r := range runs {
		s.Pages += int64(r.Pages)
		s.Bytes += r.Bytes()
		s.LongestRun = max(s.LongestRun, int(r.Pages))
		if r.Zero {
			s.ZeroPages += int64(r.Pages)
		}
	}
	if s.Pages > 0 {
		s.Contiguity = float64(s.Pages) / float64(s.Runs)
		s.ZeroShare = float64(s.ZeroPages) / float64(s.Pages)
	}
	if memorySize > 0 {
		s.GuestShare = float64(s.Pages*PageSize) / float64(memorySize)
	}
	return s
}

// Summary describes the working set.
func (s *Set) Summary() Summary { return Summarize(s.Runs, s.MemorySize) }

// Summary describes the trace; zero says which pages of the memory file are
// zeros, nil for none. Its runs are those of contiguous pages, whatever they hold.
func (t *Trace) Summary(zero func(page uint32) bool) Summary {
	s := Summarize(Runs(t.Touches, func(uint32) bool { return false }, 0), t.MemorySize)
	for _, touch := range t.Touches {
		if touch.Write {
			s.Writes++
		}
		s.Span = max(s.Span, touch.After)
		if zero != nil && zero(touch.Page) {
			s.ZeroPages++
			s.Bytes -= PageSize
		}
	}
	if s.Pages > 0 {
		s.ZeroShare = float64(s.ZeroPages) / float64(s.Pages)
	}
	return s
}
