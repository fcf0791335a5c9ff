package workingset

import (
	"fmt"
	"os"
	"path/filepath"
)

// LoadTrace reads the trace of a snapshot from its directory. os.ErrNotExist
// when there is none, ErrFormat when it is not usable.
func LoadTrace(dir string, of Of) (*Trace, error) {
	path := filepath.Join(dir, TraceFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if limit := int64(traceHeader+maxID+8) + int64(of.pages())*touchSize; st.Size() > limit {
		return nil, fmt.Errorf("%s: %w", path, refuse("it has %d bytes, more than any trace of this guest", st.Size()))
	}
	p := make([]byte, st.Size())
	if err := readAt(f, p, st.Size()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t, err := DecodeTrace(p, of)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
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

// SaveTrace publishes a trace in a snapshot's directory.
func SaveTrace(dir string, t *Trace) error {
	p, err := EncodeTrace(t)
	if err != nil {
		return fmt.Errorf("recording the trace: %w", err)
	}
	return publish(dir, TraceFile, func(f *os.File) error {
		_, err := f.Write(p)
		return err
	})
}

// SaveSet publishes a working set in a snapshot's directory; see WriteSet.
func SaveSet(dir string, of Of, runs []Run, read func(p []byte, first uint32) error) error {
	return publish(dir, SetFile, func(f *os.File) error {
		_, err := WriteSet(f, of, runs, read)
		return err
	})
}

// publish writes a file so that there is the old one or all of the new one,
// whatever happens. It does not make the directory: a snapshot that was deleted
// meanwhile stays deleted.
func publish(dir, name string, write func(*os.File) error) (err error) {
	f, err := os.CreateTemp(dir, name+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("recording %s: %w", filepath.Join(dir, name), err)
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
