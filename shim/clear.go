package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/network"
)

// clearLimit is how long what a shim has left may take to end: containerd waits
// for five seconds.
const clearLimit = 4 * time.Second

// marker is in the bundle of a container that is, or was to be, a microVM.
const marker = "microvm"

// clear takes away the microVM of a container whose shim is gone, by its bundle:
// the VMM, its cgroup, tap and files.
func clear(ctx context.Context, bundle string) error {
	if _, err := os.Stat(filepath.Join(bundle, marker)); errors.Is(err, os.ErrNotExist) {
		return nil // one of runc's
	}
	spec, err := readSpec(bundle)
	if err != nil {
		return err
	}
	c, err := translate(spec)
	if err != nil {
		return nil // it never became one
	}
	cfg, err := loadSettings()
	if err != nil {
		return err
	}
	at := placeOf(cfg, bundle)
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	errs := []error{endMarked(ctx, at.mark)}
	for _, systemd := range []bool{false, true} {
		if g := openGroup(c.Cgroup, systemd); g != nil {
			errs = append(errs, g.remove())
		}
	}
	if c.NetNS != "" {
		errs = append(errs, network.Leave(c.NetNS))
	}
	for _, dir := range []string{at.dir, at.dir + "-base", filepath.Join(cfg.DataDir, "mem", at.id)} {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// endMarked kills the processes with that variable in their environment, or as
// their last argument where a jailer wipes that, and waits until they are gone.
func endMarked(ctx context.Context, mark string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() || !marked(dir, mark) {
			continue
		}
		if err := endProcess(ctx, pid, func() bool { return marked(dir, mark) }); err != nil {
			errs = append(errs, fmt.Errorf("ending process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

func marked(proc, mark string) bool {
	env, err := os.ReadFile(filepath.Join(proc, "environ"))
	if err != nil {
		return false
	}
	args, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
	return slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return string(v) == mark }) ||
		bytes.HasSuffix(args, []byte("\x00--\x00"+mark+"\x00"))
}

// endProcess kills a process through a descriptor of it, if it still is the one
// that was meant.
func endProcess(ctx context.Context, pid int, is func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !is() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}
