package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// A clone's files that may not be in its snapshot, but are there, with nothing in them,
// get their content with the message that makes it another: in place, by as little as
// that takes, since a guest that was just restored pays for all that it touches.

// find is the delivery that a path is in, and what is left of the path: "" for a file
// that is mounted by itself.
func (d *deliveries) find(name string) (at delivery, rest string, ok bool) {
	for above := path.Clean(name); ; above = path.Dir(above) {
		if at, ok := d.at[above]; ok {
			return at, strings.TrimPrefix(strings.TrimPrefix(path.Clean(name), above), "/"), true
		}
		if above == "/" || above == "." {
			return delivery{}, "", false
		}
	}
}

// put gives a file that is there its content. Links are followed within the delivery.
func (d *deliveries) put(file guest.File) error {
	at, rest, ok := d.find(file.Path)
	if !ok || at.file != (rest == "") {
		return errors.New("nothing that the host delivers is mounted there")
	}
	how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH}
	fd, err := unix.Openat2(int(at.dir.Fd()), path.Join(at.name, rest), &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Pwrite(fd, file.Data, 0)
	if err == nil && n < len(file.Data) {
		err = unix.ENOSPC
	}
	if err != nil {
		return err
	}
	return unix.Ftruncate(fd, int64(len(file.Data)))
}

// rehearseFiles fills files below these paths with nothing, which they have in them.
func (f *function) rehearseFiles(paths []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range paths {
		at, _, ok := f.deliveries.find(name)
		if !ok {
			continue
		}
		files := []string{name}
		if !at.file {
			entries, err := os.ReadDir(inFD(at.dir) + "/" + at.name)
			if err != nil {
				return fmt.Errorf("rehearsing a clone: %w", err)
			}
			files = nil
			for _, e := range entries {
				if !e.IsDir() && !strings.HasPrefix(e.Name(), "..") {
					files = append(files, path.Join(name, e.Name()))
				}
			}
		}
		for _, file := range files {
			if err := f.deliveries.put(guest.File{Path: file}); err != nil && !errors.Is(err, unix.EISDIR) {
				return fmt.Errorf("rehearsing a clone: %w", err)
			}
		}
	}
	return nil
}

// prune removes of a delivered directory what a kubelet's earlier directories of files
// are, all but the one that ..data leads to: the host does not know of one that came with
// a snapshot.
func (d delivery) prune() error {
	if d.file {
		return nil
	}
	base := inFD(d.dir) + "/" + d.name
	now, err := os.Readlink(base + "/..data")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(base)
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..") && e.Name() != now {
			err = errors.Join(err, os.RemoveAll(base+"/"+e.Name()))
		}
	}
	return err
}
