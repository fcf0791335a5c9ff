package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prometheus/procfs"
	"github.com/skep-dev/skep/internal/marked"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/shim/base"
)

// clearLimit is how long what a shim has left may take to end: containerd waits
// for five seconds.
const clearLimit = 4 * time.Second

// marker is in the bundle of a container that is, or was to be, a microVM.
const marker = "microvm"

// clear takes away the microVM of a container whose shim is gone, by its bundle:
// the VMM, its cgroup, tap and files, and what the shim was making for others.
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
	if g, err := openGroup(c.Cgroup); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, g.remove())
	}
	if c.NetNS != "" {
		errs = append(errs, network.Leave(c.NetNS))
	}
	for _, dir := range []string{at.dir, at.dir + "-base"} {
		errs = append(errs, os.RemoveAll(dir))
	}
	errs = append(errs, base.Clean(cfg))
	gone := room{id: filepath.Base(bundle), bundle: bundle, spec: spec, container: c}
	return errors.Join(append(errs, gone.poststop(ctx))...)
}

// endMarked kills the processes with that mark, and waits until they are gone.
func endMarked(ctx context.Context, mark string) error {
	all, err := procfs.AllProcs()
	if err != nil {
		return err
	}
	bears := func(p procfs.Proc) bool { return marked.Bears(p, mark) }
	var errs []error
	for _, p := range all {
		if p.PID == os.Getpid() || !bears(p) {
			continue
		}
		fd, err := marked.Kill(p.PID, bears)
		if err == nil && fd >= 0 {
			err = errors.Join(marked.Await(ctx, fd), unix.Close(fd))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("ending process %d: %w", p.PID, err))
		}
	}
	return errors.Join(errs...)
}
