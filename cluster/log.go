package cluster

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/DeRuina/timberjack"
)

// How much of a program's log is kept: the file that is written to and those before.
const (
	logMiB     = 16
	logBackups = 1
)

// logDrain is how long what was written to a log may take to be in its file when the log
// is closed: what a program has left running may hold it open.
const logDrain = time.Second

// openLog opens a log of bounded size for programs to write to. It is a pipe, which
// outlives each of them: what one leaves running, as containerd its shims, writes on.
func openLog(path string) (log *os.File, closeLog func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("opening %s: %w", path, err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		file := &timberjack.Logger{Filename: path, MaxSize: logMiB, MaxBackups: logBackups, FileMode: 0o600}
		_, _ = io.Copy(deaf{file}, r) // ends when nobody can write any more, or with the deadline
		file.Close()
		r.Close()
	}()
	return w, func() {
		w.Close()
		_ = r.SetReadDeadline(time.Now().Add(logDrain)) // it is closed when all was read
		<-copied
	}, nil
}

// deaf drops what cannot be written: no program stands still since the disk is full.
type deaf struct{ to io.Writer }

func (d deaf) Write(p []byte) (int, error) {
	_, _ = d.to.Write(p)
	return len(p), nil
}
