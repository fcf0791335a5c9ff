package workingset

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// LoadTrace reads the trace of a snapshot from its directory. os.ErrNotExist
// when there is none, ErrFormat when it is not usable.
func LoadTrace(dir string, of Of) (*Trace, error) {
	path := filepath.Join(dir, TraceFile)
	p, err := readSmall(path, int64(traceHeader+maxID+8)+int64(of.pages())*touchSize)
	if err != nil {
		return nil, err
	}
	t, err := DecodeTrace(p, of)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// readSmall reads a file that must not be longer than limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s: %w", path, refuse("it has %d bytes, more than it can have for this guest", st.Size()))
	}
	p := make([]byte, st.Size())
	if err := readAt(f, p, st.Size()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// LoadSet reads the head of a snapshot's working set, and returns the file,
// open for reading its contents. Errors are those of LoadTrace.
func LoadSet(dir string, of Of) (*Set, *os.File, error) {
	path := filepath.Join(dir, SetFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	s, err := ReadSet(f, st.Size(), of)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, f, nil
}

// SaveTrace publishes a trace in a snapshot's directory, which is not made: a
// snapshot that was deleted meanwhile stays deleted.
func SaveTrace(dir string, t *Trace) error {
	p, err := EncodeTrace(t)
	if err != nil {
		return fmt.Errorf("recording the trace: %w", err)
	}
	return atomicfile.WriteFile(filepath.Join(dir, TraceFile), p, 0o600)
}

// SaveSet publishes a working set in a snapshot's directory; see WriteSet.
func SaveSet(dir string, of Of, runs []Run, read func(p []byte, first uint32) error) error {
	return atomicfile.WriteAt(filepath.Join(dir, SetFile), 0o600, func(f *os.File) error {
		_, err := WriteSet(f, of, runs, read)
		return err
	})
}
