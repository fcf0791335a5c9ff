package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// devices are the character devices that an OCI runtime gives to a container
// (its specification's "default devices").
var devices = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

type deviceLink struct{ name, target string }

// deviceLinks are the links beside them.
var deviceLinks = []deviceLink{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
}

// makeDevices fills the function's /dev.
func makeDevices() error {
	dir, err := dirInRoot(root, "/dev")
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	for _, d := range devices {
		if err := unix.Mknodat(fd, d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("making %s: %w", d.name, err)
		}
		if err := os.Chmod(inFD(dir)+"/"+d.name, 0o666); err != nil { // the mode is without what the umask takes
			return err
		}
	}
	links := deviceLinks
	if _, err := os.Stat("/proc/kcore"); err == nil { // some kernels have none
		links = append(links[:len(links):len(links)], deviceLink{"core", "/proc/kcore"})
	}
	for _, l := range links {
		if err := unix.Symlinkat(l.target, fd, l.name); err != nil {
			return fmt.Errorf("making %s: %w", l.name, err)
		}
	}
	return nil
}
