package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
		s.notUsed(f.fetchWhole(ctx, s))
		return nil
	}
	return s, nil
}

// setFile is a working set open for reading its contents.
type setFile struct {
	readySet
	file *os.File
	path string
}

// openSet begins a session that installs the working set of the snapshot. Where
// there is none to use, it records one instead and the setFile is nil; else the
// caller sees to its closing.
func (o *Policies) openSet(ctx context.Context, name string, src Source) (*session, *setFile, error) {
	set, file, why := o.sets.load(src)
	s, err := o.open(ctx, name, src, func(*backing) (*plan, error) {
		if why != nil {
			return nil, nil
		}
		return set.layout.plan(), nil
	})
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, nil, err
	}
	if why == nil {
		s.set, why = identify(file)
		if why != nil {
			file.Close()
		}
	}
	if why != nil {
		s.others = o.openRecording(s, why)
		return s, nil, nil
	}
	return s, &setFile{readySet: set, file: file, path: filepath.Join(src.Dir, workingset.SetFile)}, nil
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
func (s *session) notUsed(err error) {
	if err == nil || s.ctx.Err() != nil {
		return
	}
	s.say("working set not used: %v", err)
	switch {
	case !errors.Is(err, workingset.ErrFormat):
	case s.trial != nil:
		if err := s.removeTrial(); err != nil {
			s.say("%v", err)
		}
	case s.owner.claim(s.src.Dir): // else it is being written anew already
		if gone, err := s.removeSet(); err != nil {
			s.say("%v", err)
		} else if gone {
			s.say("removed it, the next start records it")
		}
		s.owner.release(s.src.Dir)
	}
	s.server.giveUp()
}

// removeSet removes the working set that this session was opened with; false:
// there is another by now, which nothing is known against. The caller has
// claimed the snapshot, without which nobody writes one.
func (s *session) removeSet() (bool, error) {
	path := filepath.Join(s.src.Dir, workingset.SetFile)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("removing the working set: %w", err)
	}
	defer f.Close()
	if id, err := identify(f); err != nil || id != s.set {
		return false, err
	}
	return true, os.Remove(path)
}

// fetchWhole reads all contents by one system call into as many buffers as it
// takes, verifies them, and hands them to the server. Where it may not have so
// many buffers at once it goes on with the rest as they come free.
func (f *setFile) fetchWhole(ctx context.Context, s *session) error {
	start := time.Now()
	spans := s.server.plan.spans(bufferSize)
	if f.ContentBytes == 0 {
		for _, sp := range spans {
			s.server.push(chunk{span: sp})
		}
	}
	for from := int64(0); from < f.ContentBytes; {
		chunks, err := f.fetchPart(ctx, s, from)
		s.count.fetch.Store(int64(time.Since(start)))
		if err == nil {
			err = f.verifyPart(chunks, from)
		}
		if err != nil {
			return err
		}
		for _, c := range chunks {
			c.span, spans = spans[0], spans[1:]
			from += int64(len(c.data))
			s.count.bytesRead.Add(int64(len(c.data)))
			s.server.push(c)
		}
	}
	return nil
}

// fetchPart reads contents from an offset on into the buffers that it may have.
func (f *setFile) fetchPart(ctx context.Context, s *session, from int64) ([]chunk, error) {
	left := f.ContentBytes - from
	bufs, err := s.owner.pool.getSome(ctx, &s.share, int((left+bufferSize-1)/bufferSize))
	if err != nil {
		return nil, err
	}
	chunks, vec := make([]chunk, len(bufs)), make([][]byte, len(bufs))
	for i, b := range bufs {
		n := min(bufferSize, left)
		chunks[i], vec[i] = chunk{data: b.mem[:n], buf: b}, b.mem[:n]
		left -= n
	}
	if err := s.owner.readVector(ctx, f, vec, f.ContentOffset+from); err != nil {
		letGo(chunks)
		return nil, err
	}
	return chunks, nil
}

// verifyPart checks contents that lie at an offset; when they are wrong it lets
// go of them.
func (f *setFile) verifyPart(chunks []chunk, from int64) error {
	for _, c := range chunks {
		if err := f.Verify(c.data, from); err != nil {
			letGo(chunks)
			return err
		}
		from += int64(len(c.data))
	}
	return nil
}

func letGo(chunks []chunk) {
	for _, c := range chunks {
		c.buf.unref()
	}
}

// maxVector is how many buffers one preadv takes.
const maxVector = 1024

// readVector reads from a working set with one of the slots that bound the
// threads which wait for the disk. It changes vec.
func (o *Policies) readVector(ctx context.Context, f *setFile, vec [][]byte, off int64) error {
	select {
	case o.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting to read %s: %w", f.path, context.Cause(ctx))
	}
	defer func() { <-o.slots }()
	return f.readVector(vec, off)
}

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
