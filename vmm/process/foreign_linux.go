package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sys"
)

// What a VMM's user can write to may hold anything once a guest has broken out
// into its VMM: a FIFO in place of a file, a link to a file of the host's, a
// socket that is another process's. What is in such a directory is therefore
// looked at before it is opened, and opening it follows nothing and waits for
// nobody.

// ErrForeign is wrapped when something in a VMM's directory is not what the VMM
// was asked to put there.
var ErrForeign = errors.New("the VMM may have been taken over by its guest")

// CopyForeign copies the regular file of that name in dir, which a process of
// user uid has made and may still be changing, to dst: at most limit bytes of it.
func CopyForeign(dst io.Writer, dir *os.File, name string, uid int, limit int64) error {
	look, st, err := lookAt(dir, name)
	if err != nil {
		return err
	}
	defer look.Close()
	bad := func(what string) error { return fmt.Errorf("%s %s: %w", name, what, ErrForeign) }
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return bad("is no regular file")
	case int(st.Uid) != uid:
		return bad(fmt.Sprintf("belongs to user %d and not to %d", st.Uid, uid))
	case st.Nlink != 1:
		return bad(fmt.Sprintf("has %d names", st.Nlink))
	case st.Size > limit:
		return bad(fmt.Sprintf("is %d bytes large, more than %d", st.Size, limit))
	}
	src, err := os.OpenFile(inFD(look), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	n, err := io.Copy(dst, io.LimitReader(src, limit+1)) // it may grow
	if err == nil && n > limit {
		err = bad(fmt.Sprintf("is larger than %d bytes", limit))
	}
	return err
}

// DialForeign connects to the stream socket of that name in dir, which must be
// one that process pid listens on. While there is none it fails with an error
// that is os.ErrNotExist or ECONNREFUSED.
func DialForeign(ctx context.Context, dir *os.File, name string, pid int) (*net.UnixConn, error) {
	look, st, err := lookAt(dir, name)
	if err != nil {
		return nil, err
	}
	defer look.Close()
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s is no socket: %w", name, ErrForeign)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", inFD(look))
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	peer, err := sys.PeerPID(conn)
	if err == nil && peer != pid {
		err = fmt.Errorf("process %d answers at %s, instead of %d: %w", peer, name, pid, ErrForeign)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// lookAt finds what has that name in dir, without opening it: to open a FIFO
// waits for another to do so, to open a device does whatever its driver does.
func lookAt(dir *os.File, name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, st, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, errors.Join(&os.PathError{Op: "stat", Path: name, Err: err}, f.Close())
	}
	return f, st, nil
}

// inFD is a path of the very thing that f is.
func inFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
