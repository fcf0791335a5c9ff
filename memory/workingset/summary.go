package workingset

import "github.com/skep-dev/skep/api"

// Summarize describes runs of a guest with that much memory.
func Summarize(runs []Run, memorySize int64) api.PageSummary {
	s := api.PageSummary{Runs: len(runs)}
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
func (s *Set) Summary() api.PageSummary { return Summarize(s.Runs, s.MemorySize) }

// Summary describes the trace; zero says which pages of the memory file are
// zeros, nil for none. Its runs are those of contiguous pages, whatever they
// hold, as the paper counts them (Figure 3).
func (t *Trace) Summary(zero func(page uint32) bool) api.PageSummary {
	s := Summarize(Runs(t.Touches, func(uint32) bool { return false }, 0), t.MemorySize)
	for _, touch := range t.Touches {
		if touch.Write {
			s.Writes++
		}
		switch {
		case touch.After == 0:
			s.BeforeResume++
		case s.First == 0 || touch.After < s.First:
			s.First = touch.After
		}
		s.Span = max(s.Span, touch.After)
		if zero != nil && zero(touch.Page) {
			s.ZeroPages++
			s.Bytes -= PageSize
		}
	}
	s.Reads = s.Pages - s.Writes
	if s.Pages > 0 {
		s.ZeroShare = float64(s.ZeroPages) / float64(s.Pages)
	}
	return s
}
