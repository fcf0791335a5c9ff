package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/memory/workingset"
)

// reapPolicy is REAP as the paper has it: one O_DIRECT read of the working-set
// file, then all of it installed, then the vCPUs run.
type reapPolicy struct{ *Policies }

func (reapPolicy) Name() string { return "reap" }

func (p reapPolicy) Open(ctx context.Context, src Source) (Session, error) {
	return p.openWhole(ctx, p.Name(), src, true)
}

// wsfilePolicy is the step before it: the same through the page cache.
type wsfilePolicy struct{ *Policies }

func (wsfilePolicy) Name() string { return "wsfile" }

func (p wsfilePolicy) Open(ctx context.Context, src Source) (Session, error) {
	return p.openWhole(ctx, p.Name(), src, false)
}

func (o *Policies) openWhole(ctx context.Context, name string, src Source, direct bool) (Session, error) {
	s, f, err := o.openSet(ctx, name, src)
	if err != nil || f == nil {
		return s, err
	}
	s.files = append(s.files, f)
	if direct {
		f.makeDirect(s)
	}
	s.prefetch = func(ctx context.Context) error {
		s.notUsed(f, f.fetchWhole(ctx, s))
		return nil
	}
	return s, nil
}

// setFile is a working set open for reading its contents.
type setFile struct {
	*workingset.Set
	file *os.File
	path string
}

// openSet begins a session that installs the working set of the snapshot. Where
// there is none to use, it records one instead and the setFile is nil; else the
// caller sees to its closing.
func (o *Policies) openSet(ctx context.Context, name string, src Source) (*session, *setFile, error) {
	set, file, why := workingset.LoadSet(src.Dir, src.of())
	s, err := o.open(ctx, name, src, func(*backing) (*plan, error) {
		if why != nil {
			return nil, nil
		}
		return newPlan(set.Runs), nil
	})
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, nil, err
	}
	if why != nil {
		o.openRecording(s, why)
		return s, nil, nil
	}
	return s, &setFile{Set: set, file: file, path: filepath.Join(src.Dir, workingset.SetFile)}, nil
}

// makeDirect makes reads by-pass the page cache, where the file system can.
func (f *setFile) makeDirect(s *session) {
	fd := int(f.file.Fd())
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	if err != nil {
		s.say("the file system has no O_DIRECT (%v): read through the page cache", err)
	}
}

func (f *setFile) close() { f.file.Close() }

// notUsed deals with a working set that could not be read to its end. What is
// wrong in itself is removed, so that the next start records it anew.
func (s *session) notUsed(f *setFile, err error) {
	if err == nil || s.ctx.Err() != nil {
		return
	}
	s.say("working set not used: %v", err)
	if errors.Is(err, workingset.ErrFormat) {
		_ = os.Remove(f.path)
		s.say("removed it, the next start records it")
	}
	s.server.giveUp()
}

// fetchWhole reads all contents by one system call into as many buffers as it
// takes, verifies them, and hands them to the server.
func (f *setFile) fetchWhole(ctx context.Context, s *session) error {
	start := time.Now()
	n := int((f.ContentBytes + bufferSize - 1) / bufferSize)
	bufs, err := s.owner.pool.get(ctx, n)
	if err != nil {
		return err
	}
	var vec [][]byte
	for i, b := range bufs {
		vec = append(vec, b.mem[:min(bufferSize, f.ContentBytes-int64(i)*bufferSize)])
	}
	err = f.readVector(slices.Clone(vec), f.ContentOffset)
	s.count.fetch.Store(int64(time.Since(start)))
	for i := 0; err == nil && i < len(vec); i++ {
		err = f.Verify(vec[i], int64(i)*bufferSize)
	}
	if err != nil {
		for _, b := range bufs {
			b.unref()
		}
		return err
	}
	s.count.bytesRead.Add(f.ContentBytes)
	for i, sp := range s.server.plan.spans(bufferSize) {
		c := chunk{span: sp}
		if i < len(vec) {
			c.data, c.buf = vec[i], bufs[i]
		}
		s.server.push(c)
	}
	return nil
}

// maxVector is how many buffers one preadv takes.
const maxVector = 1024

// readVector fills the buffers from the file; one call unless the kernel stops short.
func (f *setFile) readVector(vec [][]byte, off int64) error {
	for len(vec) > 0 {
		n, err := unix.Preadv(int(f.file.Fd()), vec[:min(len(vec), maxVector)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", f.path, err)
		}
		if n == 0 {
			return fmt.Errorf("%s: %w: it was cut short", f.path, workingset.ErrFormat)
		}
		off += int64(n)
		for n > 0 {
			k := min(n, len(vec[0]))
			vec[0] = vec[0][k:]
			if n -= k; len(vec[0]) == 0 {
				vec = vec[1:]
			}
		}
	}
	return nil
}
