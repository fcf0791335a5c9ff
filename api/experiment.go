package api

import "time"

// Experiment is a directory of results, as `skep experiment` makes it.
type Experiment struct {
	Name         string    `json:"name"`          // of the directory
	Changed      time.Time `json:"changed"`       // when its report was made, or else its samples were added to
	SamplesBytes int64     `json:"samples_bytes"` // of raw data
	Reported     bool      `json:"reported"`      // whether it has a report; `skep experiment report` makes one
}

// Report is what was made of an experiment's samples.
type Report struct {
	Title     string          `json:"title"`
	Time      time.Time       `json:"time"` // when measuring was last begun or resumed
	Skep      string          `json:"skep"` // version
	VMM       string          `json:"vmm"`
	CPU       string          `json:"cpu"`
	CPUs      int             `json:"cpus"`
	MemoryMiB int64           `json:"memory_mib"`
	Kernel    string          `json:"kernel"`
	Disk      string          `json:"disk"`
	Emulated  bool            `json:"emulated"` // whether guest code was translated by software
	Quick     bool            `json:"quick"`
	Samples   int             `json:"samples"`
	Sections  []ReportSection `json:"sections"`
	Reasons   []string        `json:"reasons"` // why this machine's figures differ from the paper's
}

// ReportSection is one experiment's part of a report.
type ReportSection struct {
	Name     string         `json:"name"`   // of the experiment
	Figure   string         `json:"figure"` // of the paper
	Title    string         `json:"title"`
	Question string         `json:"question"`
	Samples  int            `json:"samples"`
	Runs     int            `json:"runs"`
	Findings []string       `json:"findings"` // a sentence each
	Caveats  []string       `json:"caveats"`
	Figures  []ReportFigure `json:"figures"`
	Tables   []ReportTable  `json:"tables"`
}

// ReportFigure is a drawing of a report, which is asked for by its name.
type ReportFigure struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Caption string `json:"caption"`
}

// ReportTable is a table of a report, as text.
type ReportTable struct {
	Name string     `json:"name"`
	Head []string   `json:"head"`
	Rows [][]string `json:"rows"`
}
