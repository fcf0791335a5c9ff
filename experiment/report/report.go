// Package report makes a directory's report of its raw samples: one HTML file
// that needs nothing else, the same as JSON and SVG for the control API's page, its
// figures as PNG and its tables as CSV. It measures nothing and can be run again at
// any time.
package report

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/results"
	"github.com/skep-dev/skep/internal/atomicfile"
)

// File is the report in a directory of results.
const File = "report.html"

// Widths of figures: for wide pages and images, and for narrow pages.
const (
	wide   = 760
	narrow = 350
)

//go:embed report.tmpl
var source string

//go:embed report.css
var style string

// section is an experiment's part of the page.
type section struct {
	*experiment.Experiment
	experiment.Section
	Samples int
	Runs    int
	Dirty   int // cold starts before which not all pages had left the page cache
	Replay  int // samples without a VM
}

// page is what the template shows.
type page struct {
	Title    string
	Style    template.CSS
	Sessions []experiment.Session
	Last     experiment.Session
	Sections []section
	Samples  int
	Reasons  []string
}

// Write makes the report of a directory's data and returns its path.
func Write(dir string, d *experiment.Data) (string, error) {
	if len(d.Sessions) == 0 || len(d.Samples) == 0 {
		return "", fmt.Errorf("%s has no samples to report", dir)
	}
	p := page{
		Title: "Serverless function snapshots, measured again", Style: template.CSS(style),
		Sessions: d.Sessions, Last: d.Sessions[len(d.Sessions)-1], Samples: len(d.Samples),
	}
	p.Reasons = reasons(p.Last)
	for _, e := range experiment.All() {
		if all := d.Of(e); len(all) > 0 {
			p.Sections = append(p.Sections, newSection(e, all))
		}
	}
	for _, s := range p.Sections {
		if err := writeFiles(dir, s); err != nil {
			return "", err
		}
	}
	if err := write(filepath.Join(dir, results.ReportFile), func(w io.Writer) error { return json.NewEncoder(w).Encode(p.wire()) }); err != nil {
		return "", err
	}
	path := filepath.Join(dir, File)
	t, err := template.New("report").Funcs(funcs).Parse(source)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return "", fmt.Errorf("writing the report: %w", err)
	}
	return path, atomicfile.WriteFile(path, b.Bytes(), 0o644)
}

func newSection(e *experiment.Experiment, all []experiment.Sample) section {
	s := section{Experiment: e, Section: e.Show(all), Samples: len(all)}
	runs := map[int]bool{}
	for _, sample := range all {
		runs[sample.Run] = true
		if sample.Cache != nil && sample.Cache.Left > 0 {
			s.Dirty++
		}
		if sample.Replayed {
			s.Replay++
		}
	}
	s.Runs = len(runs)
	return s
}

// reasons say why this machine's figures differ from the paper's.
func reasons(s experiment.Session) []string {
	var out []string
	if s.Emulated() {
		out = append(out,
			"Guest code is emulated (TCG): every instruction is translated, at a tenth of the processor's speed or less, and code that a restored guest runs for the first time is translated first. Connection and processing are longer for it, and what page faults cost is a smaller share of the whole: gains are smaller than with KVM.")
	}
	if s.Nested() {
		out = append(out,
			"The machine is emulated, its KVM too: the host's own instructions are translated as the guest's are, and each exit of a guest is some thousand of them. A page fault, which leaves the guest for the kernel and, under userfaultfd, for another process, costs milliseconds; so do copies of pages and digests. Times compare with each other, not with other machines'.")
	}
	if kb := s.ReadAhead; kb != "" && kb != "128" {
		out = append(out, fmt.Sprintf("The disk's read-ahead is %s KiB, where Linux has 128 unless it is told otherwise: a mapped snapshot is paged in by few large reads, which makes mmap faster than the paper's baseline.", kb))
	}
	if strings.HasPrefix(s.VMM, "qemu") && !s.Unadvised {
		out = append(out, "QEMU advises huge pages for guest memory, so the kernel reads some megabytes around each fault on a mapped snapshot, whatever the disk's read-ahead, and behind a limit on reads what has holes block by block; Firecracker, which the paper used, does not.")
	}
	out = append(out,
		fmt.Sprintf("%d processors, where the paper had 48 cores, and %s, where it had a SATA SSD of 850 MB/s.", s.CPUs, s.Disk),
		"Before a function's own code runs, skep gives a clone entropy, time and identity; that is part of the connection and is not in the paper's times.",
		"The guest is Debian's kernel with a function on ext4 under an overlay in memory, not a container in a Firecracker root.")
	return out
}

// wire is the page as the control API tells it.
func (p page) wire() api.Report {
	r := api.Report{
		Title: p.Title, Time: p.Last.Time, Skep: p.Last.Skep, VMM: p.Last.VMM, CPU: p.Last.CPU, CPUs: p.Last.CPUs, MemoryMiB: p.Last.MemoryMiB, Kernel: p.Last.Kernel, Disk: p.Last.Disk,
		Emulated: p.Last.Emulated(), Quick: p.Last.Settings.Quick, Samples: p.Samples, Reasons: p.Reasons,
	}
	for _, s := range p.Sections {
		one := api.ReportSection{Name: s.Name, Figure: s.Figure, Title: s.Title, Question: s.Question, Samples: s.Samples, Runs: s.Runs, Findings: s.Findings, Caveats: s.Caveats}
		if s.Dirty > 0 {
			one.Caveats = append(slices.Clone(one.Caveats), dirty(s.Dirty))
		}
		for _, c := range s.Charts {
			about := c.About()
			one.Figures = append(one.Figures, api.ReportFigure{Name: about.Name, Title: about.Title, Caption: about.Caption})
		}
		for _, t := range s.Tables {
			one.Tables = append(one.Tables, api.ReportTable{Name: t.Name, Head: t.Head, Rows: t.Rows})
		}
		r.Sections = append(r.Sections, one)
	}
	return r
}

// dirty says before how many starts the page cache was not empty.
func dirty(n int) string {
	return fmt.Sprintf("Before %d of these starts the kernel still held pages of the files that were dropped.", n)
}

func writeFiles(dir string, s section) error {
	figures := filepath.Join(dir, results.Figures)
	for _, c := range s.Charts {
		name := c.About().Name
		err := write(filepath.Join(figures, name+".png"), func(w io.Writer) error { return chart.PNG(w, c, wide+40) })
		if err == nil {
			err = write(filepath.Join(figures, results.FigureFile(name, false)), func(w io.Writer) error { return chart.File(w, c, wide+40) })
		}
		if err == nil {
			err = write(filepath.Join(figures, results.FigureFile(name, true)), func(w io.Writer) error { return chart.File(w, c, narrow+10) })
		}
		if err != nil {
			return err
		}
	}
	for _, t := range s.Tables {
		if err := write(filepath.Join(dir, "tables", t.Name+".csv"), func(w io.Writer) error { return writeCSV(w, t) }); err != nil {
			return err
		}
	}
	return nil
}

func write(path string, fill func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, 0o644, fill)
}

var funcs = template.FuncMap{
	"wide":   func(c chart.Chart) template.HTML { return template.HTML(chart.SVG(c, wide)) },
	"narrow": func(c chart.Chart) template.HTML { return template.HTML(chart.SVG(c, narrow)) },
	"key":    func(k chart.Key) template.HTML { return template.HTML(chart.KeySVG(k)) },
	"list":   func(v []string) string { return strings.Join(v, ", ") },
	"text":   isText,
	"dirty":  dirty,
}

// isText tells whether a table's column is words: its first is.
func isText(t experiment.Table, column int) bool {
	if column == 0 {
		return true
	}
	return slices.ContainsFunc(t.Rows, func(r []string) bool {
		return column < len(r) && r[column] != "" && strings.IndexFunc(r[column], func(c rune) bool { return c >= '0' && c <= '9' }) < 0 && r[column] != "–"
	})
}
