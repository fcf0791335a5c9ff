package guest

import "bytes"

// maxLine bounds a line of output, in bytes; a longer one is split.
const maxLine = 16 << 10

// lineSplitter cuts a stream into lines.
type lineSplitter struct {
	stream string
	to     func(stream string, line []byte)
	rest   []byte
}

func (l *lineSplitter) write(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		piece, whole := p, false
		if i >= 0 {
			piece, whole = p[:i], true
			p = p[i+1:]
		} else {
			p = nil
		}
		for len(l.rest)+len(piece) > maxLine {
			n := maxLine - len(l.rest)
			l.to(l.stream, append(l.rest, piece[:n]...))
			l.rest, piece = l.rest[:0], piece[n:]
		}
		l.rest = append(l.rest, piece...)
		if whole {
			l.to(l.stream, l.rest)
			l.rest = l.rest[:0]
		}
	}
}

func (l *lineSplitter) flush() {
	if len(l.rest) > 0 {
		l.to(l.stream, l.rest)
		l.rest = l.rest[:0]
	}
}
