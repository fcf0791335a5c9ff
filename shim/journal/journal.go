// Package journal is how records get from the shims of a host to who keeps them. A
// shim adds a line to a file that all of them share, which is a system call and needs
// no library; whoever keeps records takes the lines, and with them the file. Where
// nobody does, the newest lines stay, and no more than a bound.
//
//	<data directory>/records/starts.jsonl     the newest
//	<data directory>/records/starts.1.jsonl   those before
//
// Each line is an Entry, in JSON.
package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/filelock"
)

const (
	dirName  = "records"
	newest   = "starts.jsonl"
	before   = "starts.1.jsonl"
	claim    = ".claim"
	maxBytes = 4 << 20 // of one of the two files: some two thousand starts
	maxLine  = 64 << 10
)

// Entry is one line.
type Entry struct {
	Start *api.Invocation    `json:"start,omitempty"` // of a container, as soon as what it takes is known
	ID    string             `json:"id,omitempty"`    // of the record of one that has ended
	Exit  *api.ContainerExit `json:"exit,omitempty"`
}

// Journal is the file of one data directory.
type Journal struct{ dir string }

// Of is that of a data directory. Nothing is opened.
func Of(dataDir string) Journal { return Journal{filepath.Join(dataDir, dirName)} }

// Exists says that something was ever written.
func (j Journal) Exists() bool {
	_, err := os.Stat(j.dir)
	return err == nil
}

// Append adds an entry.
func (j Journal) Append(ctx context.Context, e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("writing a record: %w", err)
	}
	if len(line) >= maxLine {
		return fmt.Errorf("writing a record: it has %d bytes, %d are the most", len(line), maxLine)
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return fmt.Errorf("writing a record: %w", err)
	}
	size, err := j.write(ctx, line)
	if err != nil {
		return fmt.Errorf("writing a record: %w", err)
	}
	if size > maxBytes {
		return j.bound(ctx)
	}
	return nil
}

// write adds a line to what is the newest file until it has been added, in one piece
// wherever the end is: others may write at the same time.
func (j Journal) write(ctx context.Context, line []byte) (size int64, err error) {
	held, err := lock(ctx, func() (*filelock.Lock, error) { return filelock.Hold(j.dir) })
	if err != nil {
		return 0, err
	}
	defer held.Release()
	f, err := os.OpenFile(filepath.Join(j.dir, newest), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	// What was cut short before, on a full disk, spoils no line but its own.
	_, err = f.Write(append(append([]byte{'\n'}, line...), '\n'))
	st, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// lock tries until nobody is in the way, which none is for long.
func lock(ctx context.Context, try func() (*filelock.Lock, error)) (*filelock.Lock, error) {
	for {
		l, err := try()
		if !errors.Is(err, filelock.ErrHeld) {
			return l, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// shift makes the newest file the one before, when nobody writes to it.
func (j Journal) shift(ctx context.Context) error {
	own, err := lock(ctx, func() (*filelock.Lock, error) { return filelock.Own(j.dir) })
	if err != nil {
		return err
	}
	defer own.Release()
	return os.Rename(filepath.Join(j.dir, newest), filepath.Join(j.dir, before))
}

// bound lets go of the older half of all entries, unless somebody is taking them.
func (j Journal) bound(ctx context.Context) error {
	c, err := filelock.TryClaim(filepath.Join(j.dir, claim))
	if errors.Is(err, filelock.ErrHeld) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bounding records: %w", err)
	}
	defer c.Release()
	if st, err := os.Stat(filepath.Join(j.dir, newest)); err != nil || st.Size() <= maxBytes {
		return nil // another has
	}
	if err := j.shift(ctx); err != nil {
		return fmt.Errorf("bounding records: %w", err)
	}
	return nil
}

// Take hands all entries over, the oldest first, and removes them once keep has
// returned without an error. A line that is none is left out. Of several that take, one
// does at a time.
func (j Journal) Take(ctx context.Context, keep func([]Entry) error) error {
	if _, err := os.Stat(j.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c, err := filelock.Claim(ctx, filepath.Join(j.dir, claim))
	if err != nil {
		return fmt.Errorf("taking records: %w", err)
	}
	defer c.Release()
	err = j.take(keep) // what was bounded away, or taken and not kept
	if err == nil {
		if err = j.shift(ctx); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil {
		err = j.take(keep)
	}
	if err != nil {
		return fmt.Errorf("taking records: %w", err)
	}
	return nil
}

func (j Journal) take(keep func([]Entry) error) error {
	path := filepath.Join(j.dir, before)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var entries []Entry
	for line := range bytes.Lines(b) {
		var e Entry
		if json.Unmarshal(line, &e) == nil && (e.Start != nil || e.Exit != nil) {
			entries = append(entries, e)
		}
	}
	if err := keep(entries); err != nil {
		return err
	}
	return os.Remove(path)
}
