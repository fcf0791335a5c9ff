// Package lazydisk shows disks that are still on their way as files: a small FUSE file system, whose files are
// read-only and whose reads wait for what is not here yet. It stands beside the way of a cold invocation:
// package node has the VMM of an instance open such a file in the place of a root disk that is not here whole.
package lazydisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Disk is what a file shows. Its methods are called from many goroutines.
type Disk interface {
	// Size is its length in bytes.
	Size() int64
	// Here says whether a piece of it, which is not empty, can be read; Bring returns when it can, or why not.
	Here(off, length int64) bool
	Bring(ctx context.Context, off, length int64) error
	// ReadAt reads what was brought.
	io.ReaderAt
}

// maxWaits bounds how many reads of a file may wait for something at once: a VMM may have more under way. The
// others wait for their turn.
const maxWaits = 8

// held is how long a read that failed is not answered unless its reader ends.
const held = 10 * time.Second

// Server is the file system. Its methods may be called from many goroutines.
type Server struct {
	dir  string
	fuse *fuse.Server
	root *fs.Inode
	over chan struct{} // closed when it serves no more

	once sync.Once
	err  error
}

// Open mounts the file system on a directory, which it makes if it is not there. What a dead process left
// mounted there goes. The error wraps fs.ErrNotExist or fs.ErrPermission where this host has no FUSE for us.
func Open(dir string) (*Server, error) {
	fail := func(err error) (*Server, error) {
		return nil, fmt.Errorf("mounting a file system for disks that are arriving on %s: %w", dir, err)
	}
	if err := Unmount(dir); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	// The library's own way to mount leaves the descriptor open in every process that is started meanwhile.
	const device = "/dev/fuse"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(&os.PathError{Op: "open", Path: device, Err: err})
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other", fd, os.Geteuid(), os.Getegid())
	if err := unix.Mount("skep", dir, "fuse.skep", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		_ = unix.Close(fd)
		return fail(err)
	}
	s := &Server{dir: dir, root: &fs.Inode{}, over: make(chan struct{})}
	never := time.Duration(0)
	raw := fs.NewNodeFS(s.root, &fs.Options{EntryTimeout: &never, AttrTimeout: &never, NegativeTimeout: &never})
	s.fuse, err = fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		FsName: "skep", Name: "skep", DisableXAttrs: true, DisableReadDirPlus: true,
	})
	if err != nil {
		return fail(errors.Join(err, Unmount(dir)))
	}
	go func() { // ends when it is unmounted and nobody has a file of it, or its connection is broken off
		defer close(s.over)
		s.fuse.Serve()
	}()
	if err := s.answers(); err != nil {
		return fail(errors.Join(err, s.Close()))
	}
	return s, nil
}

// answers has the kernel find out that files here are not to be polled: a Go program that opens one, such as
// this one, would ask for that with a processor in its hands which the answer may need. The library has a file
// for it.
func (s *Server) answers() error {
	path := filepath.Join(s.dir, ".go-fuse-epoll-hack")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		if _, err = unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 0); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Unmount takes away what is mounted on a directory, if anything is: reads of it under way and to come fail.
func Unmount(dir string) error {
	for {
		switch err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // nothing is, or nothing more
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}

// Close unmounts the file system. Who has a file open gets errors from it. It is idempotent.
func (s *Server) Close() error {
	s.once.Do(func() {
		if s.err = Unmount(s.dir); s.err == nil {
			<-s.over
			s.err = os.Remove(s.dir)
		}
	})
	return s.err
}

// file is one disk as one reader sees it.
type file struct {
	fs.Inode
	disk   Disk
	failed func(error)
	waits  chan struct{}

	ctx    context.Context // ends when the file is closed
	cancel context.CancelFunc
	once   sync.Once     // of failed
	broken chan struct{} // closed after that
}

// Show shows a disk at the path that is returned, under a name that no other has. When a read cannot be served,
// failed is called, once, with the reason, and has the reader ended: only then, or after ten seconds, it and all
// others get an error. end takes the file away: what waits for something, or does later, fails.
func (s *Server) Show(name string, d Disk, failed func(error)) (path string, end func(), err error) {
	path = filepath.Join(s.dir, name)
	f := &file{disk: d, failed: failed, waits: make(chan struct{}, maxWaits), broken: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	node := s.root.NewPersistentInode(f.ctx, f, fs.StableAttr{Mode: syscall.S_IFREG})
	if !s.root.AddChild(name, node, false) {
		f.cancel()
		return "", nil, fmt.Errorf("showing a disk that is arriving as %s: there is one of that name", path)
	}
	var once sync.Once
	return path, func() {
		once.Do(func() {
			f.cancel()
			s.root.RmChild(name)
		})
	}, nil
}

var (
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
)

// Getattr says what a file is: anybody may read it who comes this far.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o444, uint64(f.disk.Size())
	out.Blksize, out.Blocks = 4096, (out.Size+511)/512
	return 0
}

// Open opens it, without a page cache of its own: the guest has one, and the file below another.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read reads a piece, when it is here. reader ends when the one that reads is being killed, which must not
// wait for what the disk waits for.
func (f *file) Read(reader context.Context, _ fs.FileHandle, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	size := f.disk.Size()
	if off >= size || len(b) == 0 {
		return fuse.ReadResultData(nil), 0
	}
	b = b[:min(int64(len(b)), size-off)]
	err := f.bring(reader, off, int64(len(b)))
	if err == nil {
		var n int
		if n, err = f.disk.ReadAt(b, off); n == len(b) {
			return fuse.ReadResultData(b), 0
		}
		err = fmt.Errorf("%d bytes of %d at %d are not to be read: %w", n, len(b), off, err)
	}
	if f.ctx.Err() == nil && reader.Err() == nil {
		f.fail(err)
		f.hold(reader)
	}
	if reader.Err() != nil {
		return nil, syscall.EINTR
	}
	return nil, syscall.EIO
}

// bring waits for a piece, until the reader or the file ends, or the file is broken.
func (f *file) bring(reader context.Context, off, length int64) error {
	if f.disk.Here(off, length) {
		return nil
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	defer context.AfterFunc(reader, cancel)()
	select {
	case f.waits <- struct{}{}:
		defer func() { <-f.waits }()
	case <-f.broken:
		return errBroken
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-f.broken:
		return errBroken
	default:
		return f.disk.Bring(ctx, off, length)
	}
}

var errBroken = errors.New("another part could not be had")

func (f *file) fail(err error) {
	f.once.Do(func() {
		f.failed(err)
		close(f.broken)
	})
}

// hold keeps an error from a guest that is about to be ended: it would take it for one of its disk's.
func (f *file) hold(reader context.Context) {
	t := time.NewTimer(held)
	defer t.Stop()
	select {
	case <-reader.Done():
	case <-f.ctx.Done():
	case <-t.C:
	}
}
