package node

import (
	"bytes"
	"io"

	"github.com/skep-dev/skep/api"
)

// logTime is the time at the beginning of each line of a log: in UTC and always
// as long, so that two compare as text.
const logTime = "2006-01-02T15:04:05.000000Z"

// logFilter passes on the lines that a query selects. Until flush it holds the
// last ones back, if only so many are wanted.
type logFilter struct {
	w    io.Writer
	q    api.LogQuery
	from []byte // the time of the first line that is wanted, or nil
	last [][]byte
	rest []byte // the beginning of a line whose end has not come
}

func newLogFilter(w io.Writer, q api.LogQuery) *logFilter {
	f := &logFilter{w: w, q: q}
	if !q.Since.IsZero() {
		f.from = q.Since.UTC().AppendFormat(nil, logTime)
	}
	return f
}

func (f *logFilter) Write(b []byte) (int, error) {
	f.rest = append(f.rest, b...)
	var out []byte
	left := f.rest
	for {
		end := bytes.IndexByte(left, '\n') + 1
		if end == 0 {
			break
		}
		line := left[:end]
		left = left[end:]
		switch {
		case !f.wants(line):
		case f.q.Tail > 0:
			f.hold(line)
		default:
			out = append(out, line...)
		}
	}
	f.rest = append(f.rest[:0], left...)
	if len(out) > 0 {
		if _, err := f.w.Write(out); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// wants looks at what stands before the text: time, instance, stream, invocation.
func (f *logFilter) wants(line []byte) bool {
	if f.from != nil && bytes.Compare(line, f.from) < 0 {
		return false
	}
	if f.q.Instance == "" && f.q.Invocation == "" {
		return true
	}
	fields := bytes.SplitN(line, []byte{' '}, 5)
	return len(fields) == 5 &&
		(f.q.Instance == "" || string(fields[1]) == f.q.Instance) &&
		(f.q.Invocation == "" || string(fields[3]) == f.q.Invocation)
}

func (f *logFilter) hold(line []byte) {
	if len(f.last) == f.q.Tail {
		f.last = f.last[1:]
	}
	f.last = append(f.last, bytes.Clone(line))
}

// flush passes on what was held back; what comes after is passed on as it comes.
func (f *logFilter) flush() error {
	f.q.Tail = 0
	out := bytes.Join(f.last, nil)
	f.last = nil
	if len(out) == 0 {
		return nil
	}
	_, err := f.w.Write(out)
	return err
}
