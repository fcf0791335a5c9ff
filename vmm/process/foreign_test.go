package process

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

const foreignUID = 61939

// openDir opens a directory that a VMM's user may write to.
func openDir(t *testing.T) (string, *os.File) {
	t.Helper()
	dir := testenv.Dir(t)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return dir, f
}

// Whatever a VMM's user leaves where its state is expected, it is neither
// followed nor waited for, and takes no more space than it may.
func TestCopyForeignTakesNothingElse(t *testing.T) {
	testenv.Need(t, "root")
	const limit = 1 << 20
	secret := filepath.Join(testenv.Dir(t), "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	regular := func(path string) error { return os.WriteFile(path, []byte("state"), 0o600) }
	const another, nothing = "another's", "nothing"
	for name, test := range map[string]struct {
		make func(path string) error
		ok   bool
	}{
		"a file":       {regular, true},
		"a FIFO":       {func(p string) error { return unix.Mkfifo(p, 0o666) }, false},
		"a link":       {func(p string) error { return os.Symlink(secret, p) }, false},
		"a dead link":  {func(p string) error { return os.Symlink("nowhere", p) }, false},
		"a directory":  {func(p string) error { return os.Mkdir(p, 0o777) }, false},
		"a device":     {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }, false},
		"two names":    {func(p string) error { return errors.Join(regular(p), os.Link(p, p+"2")) }, false},
		another:        {regular, false},
		"a large file": {func(p string) error { return errors.Join(regular(p), os.Truncate(p, 1<<40)) }, false},
		"the largest":  {func(p string) error { return errors.Join(regular(p), os.Truncate(p, limit)) }, true},
		"a socket": {func(p string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: p})
		}, false},
		nothing: {func(string) error { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.NoLeaks(t)
			path, dir := openDir(t)
			file := filepath.Join(path, "state")
			err := test.make(file)
			if err == nil && name != another && name != nothing {
				err = os.Lchown(file, foreignUID, foreignUID) // as its VMM's user makes it
			}
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			err = CopyForeign(&got, dir, "state", foreignUID, limit)
			if (err == nil) != test.ok || got.Len() > 0 != test.ok {
				t.Errorf("%d bytes, %v", got.Len(), err)
			}
			if err != nil && !errors.Is(err, ErrForeign) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ELOOP) {
				t.Errorf("it is refused with %v", err)
			}
		})
	}
	_, dir := openDir(t)
	for _, outside := range []string{"../" + filepath.Base(secret), secret, ".."} {
		if err := CopyForeign(&bytes.Buffer{}, dir, outside, 0, limit); err == nil {
			t.Errorf("%s was read", outside)
		}
	}
}

// A file that grows while it is read ends at the limit too.
func TestCopyForeignIsBoundedWhileItGrows(t *testing.T) {
	path, dir := openDir(t)
	file := filepath.Join(path, "state")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	grow := writerFunc(func(b []byte) (int, error) {
		_, err := f.Write(bytes.Repeat([]byte("x"), 64<<10))
		return len(b), err
	})
	if err := CopyForeign(grow, dir, "state", os.Getuid(), 1<<20); !errors.Is(err, ErrForeign) {
		t.Errorf("%v; want that it is too large", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A VMM that puts a link in place of its socket does not have the daemon speak
// to another one of the host's.
func TestDialForeign(t *testing.T) {
	testenv.NoLeaks(t)
	path, dir := openDir(t)
	l, err := net.Listen("unix", filepath.Join(path, "own"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, err := range []error{
		os.Symlink("own", filepath.Join(path, "link")),
		unix.Mkfifo(filepath.Join(path, "fifo"), 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := DialForeign(t.Context(), dir, "own", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for name, pid := range map[string]int{"link": os.Getpid(), "fifo": os.Getpid(), "own": os.Getpid() + 1} {
		if conn, err := DialForeign(t.Context(), dir, name, pid); err == nil {
			conn.Close()
			t.Errorf("%s as process %d's: it is connected to", name, pid)
		} else if !errors.Is(err, ErrForeign) && !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DialForeign(t.Context(), dir, "none", os.Getpid()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a socket that is not there: %v", err)
	}
}
