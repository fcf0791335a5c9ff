package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// watches notice that a process opens what the host will give its content later.
type watches struct {
	mu     sync.Mutex // guards what follows
	fd     int        // of inotify; 0: nothing is watched
	opened bool
	paths  []string // that are watched, with all below them; they stay when the watching ends
}

// errOpened is why there is no snapshot then: what the process has seen is not what
// the next one would.
var errOpened = refusedError{guest.RefusedOpened, errors.New("a process has opened a file whose content is to come after the snapshot")}

// watch answers the host's question, and watches what is at a path, if there is one.
func (s *processes) watch(c *execConn, name string) {
	err := s.watches.check()
	if err == nil && name != "" {
		err = s.watches.add(s.fn.root, name)
	}
	if err != nil {
		s.refuse(c, refusal(err), err)
		return
	}
	_ = c.last(guest.KindCopied, nil) // else the host is gone
}

func (w *watches) add(root, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	file, err := openAt(root, name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer file.Close()
	var all []string // before any is watched: to read a directory opens it
	err = filepath.WalkDir(inFD(file)+"/.", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, unix.ENOTDIR) {
			all = append(all, inFD(file))
			return nil
		}
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("watching %s: %w", name, err)
	}
	if w.fd == 0 {
		if w.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
			w.fd = 0
			return fmt.Errorf("watching %s: %w", name, err)
		}
	}
	w.paths = append(w.paths, name)
	for _, path := range all {
		if _, err := unix.InotifyAddWatch(w.fd, path, unix.IN_OPEN); err != nil {
			return fmt.Errorf("watching %s: %w", name, os.NewSyscallError("inotify_add_watch", err))
		}
	}
	return nil
}

// check says whether anything was opened.
func (w *watches) check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd != 0 && !w.opened {
		var b [4096]byte
		n, err := unix.Read(w.fd, b[:])
		w.opened = n > 0 || err != nil && err != unix.EAGAIN
	}
	if w.opened {
		return errOpened
	}
	return nil
}

// end forgets all, unless something was opened: a clone may open everything.
func (w *watches) end() error {
	if err := w.check(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd != 0 {
		unix.Close(w.fd)
		w.fd = 0
	}
	return nil
}
