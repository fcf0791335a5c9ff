package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/vmm"
)

// Log is a file that holds the newest part of an endless stream in bounded
// space: when the file is full it becomes NAME.1, in place of the one before,
// and a new one begins. So the two together hold the newest half at least.
type Log struct {
	path string
	half int64 // bytes, of each file

	mu   sync.Mutex
	file *os.File // nil when closed
	size int64
}

// OpenLog creates the log; files of these names are replaced. It never holds
// more than limit bytes.
func OpenLog(path string, limit int64) (*Log, error) {
	l := &Log{path: path, half: limit / 2}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// OpenConsole creates the log of a machine's console.
func OpenConsole(h vmm.Host) (*Log, error) {
	limit := h.ConsoleBytes
	if limit == 0 {
		limit = 1 << 20
	}
	return OpenLog(filepath.Join(h.Dir, "console.log"), limit)
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return fmt.Errorf("opening log: %w", err)
	}
	l.file, l.size = f, 0
	return nil
}

// Write takes all of b. It never reports an error: a full disk must stop
// neither the reader of a console nor, with it, the guest.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := b; len(rest) > 0 && l.file != nil; {
		n := min(int64(len(rest)), l.half-l.size)
		if n <= 0 {
			if l.rotate() != nil {
				break
			}
			continue
		}
		if _, err := l.file.Write(rest[:n]); err != nil {
			break
		}
		l.size += n
		rest = rest[n:]
	}
	return len(b), nil
}

// rotate begins a new file.
func (l *Log) rotate() error {
	err := errors.Join(l.file.Close(), os.Rename(l.path, l.path+".1"))
	l.file = nil
	return errors.Join(err, l.open())
}

// Close closes the log. It is idempotent.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// tail keeps the last bytes of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
