package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Where things are in the agent's own root, which is the initramfs.
const (
	lower     = "/lower" // the root disk, read-only
	scratch   = "/rw"    // tmpfs: what the function writes
	root      = "/root"  // overlay of both: the function's root
	groupRoot = "/sys/fs/cgroup"
	group     = groupRoot + "/function" // the function's processes
	// ModuleList names the modules in the initramfs, a path a line, in load order.
	ModuleList = "/modules.order"
	// ModuleDir is the directory that they are in.
	ModuleDir = "/modules"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", m.fstype, m.target, err)
	}
	return nil
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// setUp makes the machine ready for a function: file systems, modules, network.
func setUp() error {
	for _, m := range []mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"cgroup2", groupRoot, "cgroup2", quiet, ""},
	} {
		if err := m.do(); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	return setUpNetwork()
}

// loadModules loads the modules and removes their files, which are memory.
func loadModules() error {
	f, err := os.Open(ModuleList)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, err := os.Open(lines.Text())
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("loading module %s: %w", lines.Text(), err)
		}
	}
	return errors.Join(lines.Err(), os.RemoveAll(ModuleDir))
}

// PowerOff ends the machine. Resetting is what every VMM notices.
func PowerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // returns only on an error, and then there is nothing left to do
}
