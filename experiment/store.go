package experiment

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// SamplesFile is the raw data in a directory of results.
const SamplesFile = "samples.jsonl"

// Data is the raw data of a directory of results.
type Data struct {
	Sessions []Session
	Samples  []Sample
}

// line is one line of the file: a session, or else a sample.
type line struct {
	Session *Session `json:"session,omitempty"`
	Sample
}

// Load reads the complete points of a directory of results.
func Load(dir string) (*Data, error) {
	f, err := os.Open(filepath.Join(dir, SamplesFile))
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	defer f.Close()
	d, _, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return d, nil
}

// read returns the sessions and complete points, and whether there was more: a
// torn last line or a point that an interruption cut short.
func read(r io.Reader) (d *Data, torn bool, err error) {
	d = &Data{}
	in := bufio.NewReaderSize(r, 1<<20)
	for n := 1; ; n++ {
		b, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			torn = torn || len(b) > 0
			break
		}
		if err != nil {
			return nil, false, err
		}
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			return nil, false, fmt.Errorf("line %d: %w", n, err)
		}
		if l.Session != nil {
			d.Sessions = append(d.Sessions, *l.Session)
			continue
		}
		if l.Experiment == "" || l.Of < 1 {
			return nil, false, fmt.Errorf("line %d is neither a session nor a sample", n)
		}
		d.Samples = append(d.Samples, l.Sample)
	}
	have := map[string]int{}
	for _, s := range d.Samples {
		have[s.key()]++
	}
	whole := d.Samples[:0]
	for _, s := range d.Samples {
		if have[s.key()] >= s.Of {
			whole = append(whole, s)
		} else {
			torn = true
		}
	}
	d.Samples = whole
	return d, torn, nil
}

// Store is a directory of results that is being added to.
type Store struct {
	Data
	dir     string
	file    *os.File
	done    map[string]bool
	session int
}

// OpenStore opens a directory of results, which may hold some, for a session.
func OpenStore(dir string, session Session) (*Store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of results: %w", err)
	}
	path := filepath.Join(dir, SamplesFile)
	s := &Store{dir: dir, done: map[string]bool{}}
	if b, err := os.ReadFile(path); err == nil {
		d, torn, err := read(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%s holds something else than results: %w; choose another --out", path, err)
		}
		s.Data = *d
		if torn {
			if err := s.rewrite(path); err != nil {
				return nil, err
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading earlier results: %w", err)
	}
	for _, sample := range s.Samples {
		s.done[sample.key()] = true
	}
	session.ID = len(s.Sessions) + 1
	s.session = session.ID
	var err error
	if s.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, fmt.Errorf("opening results: %w", err)
	}
	s.Sessions = append(s.Sessions, session)
	return s, s.write(map[string]any{"session": session})
}

// rewrite replaces the file by what is complete.
func (s *Store) rewrite(path string) error {
	return atomicfile.Write(path, 0o644, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		for _, session := range s.Sessions {
			if err := enc.Encode(map[string]any{"session": session}); err != nil {
				return err
			}
		}
		for _, sample := range s.Samples {
			if err := enc.Encode(sample); err != nil {
				return err
			}
		}
		return nil
	})
}

// Has says whether a point has been measured.
func (s *Store) Has(p Point) bool { return s.done[p.key()] }

// Add stores the samples of a point, all at once.
func (s *Store) Add(p Point, samples []Sample) error {
	if len(samples) == 0 {
		return fmt.Errorf("%s: no samples", p)
	}
	lines := make([]any, len(samples))
	for i := range samples {
		samples[i].Point, samples[i].Instance, samples[i].Of, samples[i].Session = p, i, len(samples), s.session
		lines[i] = samples[i]
	}
	if err := s.write(lines...); err != nil {
		return err
	}
	s.done[p.key()] = true
	s.Samples = append(s.Samples, samples...)
	return nil
}

func (s *Store) write(lines ...any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	if _, err := s.file.Write(b.Bytes()); err != nil {
		return fmt.Errorf("storing samples: %w", err)
	}
	return nil
}

// Close syncs and closes the file.
func (s *Store) Close() error {
	return errors.Join(s.file.Sync(), s.file.Close())
}
