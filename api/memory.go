package api

import "time"

// PageSummary says what a set of guest pages, a trace's or a working set's, is
// made of. A page has 4096 bytes.
type PageSummary struct {
	Pages      int64   `json:"pages"`
	ZeroPages  int64   `json:"zero_pages"`
	Runs       int     `json:"runs"`
	Contiguity float64 `json:"contiguity_pages"` // pages of a run, on average
	LongestRun int     `json:"longest_run_pages"`
	ZeroShare  float64 `json:"zero_share"`  // of the pages
	GuestShare float64 `json:"guest_share"` // pages of all pages of the guest
	Bytes      int64   `json:"bytes"`       // of contents

	// Of a trace only: first touches by kind, and when they were, counted from
	// when the vCPUs ran.
	Reads        int64         `json:"reads,omitempty"`
	Writes       int64         `json:"writes,omitempty"`
	BeforeResume int64         `json:"before_resume_pages,omitempty"` // while device state was loaded
	First        time.Duration `json:"first_touch_ns,omitempty"`      // of those after
	Span         time.Duration `json:"span_ns,omitempty"`             // until the last first touch
}

// SnapshotMemory is what is known of how guests use the memory of a snapshot.
type SnapshotMemory struct {
	Snapshot    string        `json:"snapshot"`
	Function    string        `json:"function"`
	Policy      string        `json:"policy"` // that restores of the function go by
	MemoryBytes int64         `json:"memory_bytes"`
	DataPages   int64         `json:"data_pages"`        // of the memory file that are not holes
	Problem     string        `json:"problem,omitempty"` // why the memory file cannot be used
	Trace       PageFile      `json:"trace"`
	WorkingSet  PageFile      `json:"working_set"`
	Trial       PageFile      `json:"trial,omitzero"` // what stream prefetches until there is a working set
	Learned     LearnedMemory `json:"learned"`
	Map         *PageMap      `json:"map,omitempty"` // only when it was asked for
}

// PageFile is a file that remembers pages of a snapshot. Without a summary there
// is none, or it is refused for a problem and will be recorded anew.
type PageFile struct {
	Recorded  time.Time    `json:"recorded,omitzero"`
	FileBytes int64        `json:"file_bytes,omitempty"`
	Problem   string       `json:"problem,omitempty"`
	Summary   *PageSummary `json:"summary,omitempty"`
}

// LearnedMemory is what restores have shown of a working set.
type LearnedMemory struct {
	Problem  string `json:"problem,omitempty"` // why what was learned is not used
	Restores int64  `json:"restores"`          // observed since the working set was recorded
	Missed   int64  `json:"missed_pages"`      // touched by one of the last eight and not in the working set; -1: not known
	Wasted   int64  `json:"wasted_pages"`      // in the working set, held back as a sample and not touched; -1: not known
	Without  int64  `json:"without,omitempty"` // starts still to be made without the working set, since it does not pay
}

// PageMap says of every page of a guest what is known. Its sets may overlap; nil
// is a set that is not known.
type PageMap struct {
	Data       PageRuns `json:"data"`       // not a hole in the memory file
	Touched    PageRuns `json:"touched"`    // in the trace
	Prefetched PageRuns `json:"prefetched"` // in the working set
	Zero       PageRuns `json:"zero"`       // of those, without contents
	Missed     PageRuns `json:"missed"`     // touched after a resume, and not prefetched
	Wasted     PageRuns `json:"wasted"`     // prefetched, and seen not to be touched
}

// PageRuns is a set of pages: the first page and the number of pages of each
// run, ascending.
type PageRuns [][2]uint32

// Pages is the number of pages in the set.
func (r PageRuns) Pages() (n int64) {
	for _, run := range r {
		n += int64(run[1])
	}
	return n
}
