package microvm

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// tail keeps the last lines of a server, for the error of a failed start.
type tail struct {
	mu   sync.Mutex // guards last
	last []string
}

const tailLines, tailWidth = 20, 400

func (t *tail) add(line []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.last) == tailLines {
		copy(t.last, t.last[1:])
		t.last = t.last[:tailLines-1]
	}
	t.last = append(t.last, string(line[:min(len(line), tailWidth)]))
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.last...)
}

// guestSpeaks begins what the guest's kernel or the agent says on the console,
// or the agent's end. Before that the firmware speaks, which helps nobody.
var guestSpeaks = regexp.MustCompile(`\[ *[0-9]+\.[0-9]{6}\] |skep-agent: |panic: |fatal error: `)

// lastConsole returns the end of what the guest's kernel and agent said: all
// there is when the function has not come to write anything.
func lastConsole(dir string) []string {
	f, err := os.Open(filepath.Join(dir, "console.log"))
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 2048 // bytes
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	begin := guestSpeaks.FindIndex(b)
	if err != nil || begin == nil {
		return nil
	}
	b = b[begin[0]:]
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), "\r", "")), "\n")
	return lines[max(0, len(lines)-tailLines):]
}
