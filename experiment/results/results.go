// Package results reads what `skep experiment` wrote, for the control API and its page:
// which directories of results there are, and their reports. Whoever may write there may
// have put anything there: names, kinds and sizes of files are bounded, links are not
// followed, and nothing outside the directory is read.
package results

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
)

// What a directory of results has beside what package experiment says.
const (
	ReportFile = "report.json" // an api.Report
	Figures    = "figures"     // NAME.svg, and NAME-narrow.svg for narrow pages
	samples    = "samples.jsonl"
)

// Bounds of what is read.
const (
	maxEntries = 10_000
	maxName    = 100
	maxReport  = 4 << 20
	maxObjects = 10_000 // sections, figures and tables of a report: each is much more in memory than in its file
	maxFigure  = 2 << 20
)

// ErrMalformed is wrapped by errors about what is not a report or a figure.
var ErrMalformed = errors.New("it is not what `skep experiment report` makes")

// names are those that are looked at; a dot first is of what is not ready.
var names = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

func valid(name string) bool { return len(name) <= maxName && names.MatchString(name) }

// Dir is a directory whose directories are of results. It need not exist, nor be named.
type Dir string

func (d Dir) open() (*os.Root, error) {
	if d == "" {
		return nil, fs.ErrNotExist
	}
	return os.OpenRoot(string(d))
}

// List says what there is, in no order. What is not a directory of results is not told.
func (d Dir) List() ([]api.Experiment, error) {
	root, err := d.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	defer root.Close()
	in, err := root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	defer in.Close()
	entries, err := in.ReadDir(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	var all []api.Experiment
	for _, e := range entries {
		if !e.IsDir() || !valid(e.Name()) {
			continue
		}
		one := api.Experiment{Name: e.Name()}
		if st, err := root.Lstat(path.Join(e.Name(), samples)); err == nil && st.Mode().IsRegular() {
			one.SamplesBytes, one.Changed = st.Size(), changed(st)
		}
		if st, err := root.Lstat(path.Join(e.Name(), ReportFile)); err == nil && st.Mode().IsRegular() {
			one.Reported, one.Changed = true, changed(st)
		}
		if !one.Changed.IsZero() {
			all = append(all, one)
		}
	}
	return all, nil
}

// changed is when a file was, as far as JSON can say it.
func changed(st fs.FileInfo) time.Time {
	t := st.ModTime().UTC()
	if t.Year() < 1970 || t.Year() > 9999 {
		t = time.Unix(0, 0).UTC()
	}
	return t
}

// Report reads one's report. An error about what is not there is fs.ErrNotExist.
func (d Dir) Report(name string) (r api.Report, err error) {
	b, err := d.read(maxReport, name, ReportFile)
	if err != nil {
		return r, fmt.Errorf("the report of %q: %w", name, err)
	}
	if n := bytes.Count(b, []byte("{")); n > maxObjects {
		return r, fmt.Errorf("the report of %q has %d parts, more than %d: %w", name, n, maxObjects, ErrMalformed)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("the report of %q: %w: %w", name, ErrMalformed, err)
	}
	// Lists are never null.
	r.Sections, r.Reasons = list(r.Sections), list(r.Reasons)
	for i := range r.Sections {
		s := &r.Sections[i]
		s.Findings, s.Caveats, s.Figures, s.Tables = list(s.Findings), list(s.Caveats), list(s.Figures), list(s.Tables)
		for i := range s.Tables {
			t := &s.Tables[i]
			t.Head, t.Rows = list(t.Head), list(t.Rows)
			for i := range t.Rows {
				t.Rows[i] = list(t.Rows[i])
			}
		}
	}
	return r, nil
}

func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// FigureFile is the name of a figure's file.
func FigureFile(figure string, narrow bool) string {
	if narrow {
		figure += "-narrow"
	}
	return figure + ".svg"
}

// Figure reads a figure, an SVG that somebody may have put scripts in.
func (d Dir) Figure(name, figure string, narrow bool) ([]byte, error) {
	if !valid(figure) {
		return nil, fmt.Errorf("figure %q of %q: %w", figure, name, fs.ErrNotExist)
	}
	b, err := d.read(maxFigure, name, Figures, FigureFile(figure, narrow))
	if err != nil {
		return nil, fmt.Errorf("figure %q of %q: %w", figure, name, err)
	}
	return b, nil
}

// read reads a regular file of one, of a size at most.
func (d Dir) read(most int64, name string, below ...string) ([]byte, error) {
	if !valid(name) {
		return nil, fs.ErrNotExist
	}
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	at := name
	for _, part := range below {
		if st, err := root.Lstat(at); err != nil || !st.IsDir() { // a link is none
			return nil, cmp.Or(err, fs.ErrNotExist)
		}
		at = path.Join(at, part)
	}
	if st, err := root.Lstat(at); err != nil || !st.Mode().IsRegular() {
		return nil, cmp.Or(err, fs.ErrNotExist)
	}
	f, err := root.OpenFile(at, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a pipe by now
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, cmp.Or(err, fs.ErrNotExist)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("it has more than %d bytes: %w", most, ErrMalformed)
	}
	return b, err
}
