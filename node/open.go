package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// Open takes the data directory, puts right what a crashed daemon left, and
// returns a node that serves the functions that are stored there. ErrLocked is
// wrapped when another daemon has it.
func Open(ctx context.Context, cfg Config, deps Deps) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the data directory: %w", err)
	}
	lock, err := takeLock(cfg.path("lock"))
	if err != nil {
		return nil, fmt.Errorf("opening the data directory %s: %w", cfg.DataDir, err)
	}
	n := &Node{
		cfg: cfg, deps: deps, log: deps.Log, lock: lock, pools: map[string]*pool{},
		budget:  newBudget(cfg.MaxInstances, cfg.MemoryMiB),
		starter: microvm.Starter{VMM: deps.VMM, Connect: deps.Connect, Hear: deps.Wake, Log: deps.Log},
		drain:   make(chan struct{}), pushNow: make(chan struct{}, 1),
		events: newEvents(),
		opened: time.Now(),
	}
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := n.open(ctx); err != nil {
		return nil, errors.Join(err, n.abandon())
	}
	n.shells = newShells(n)
	n.spawn(n.shells.wantLast)
	n.rec = newRecorder(n.db.records, cfg.KeepRecords, deps.OnRecord, n.log)
	n.collectImages()
	if n.deps.Remote != nil && n.cfg.Push {
		n.spawn(n.pushSnapshots)
	}
	for _, p := range n.allPools() { // some have instances though nobody asks
		p.poke()
	}
	return n, nil
}

func (n *Node) open(ctx context.Context) error {
	if err := n.recoverProcesses(ctx); err != nil {
		return err
	}
	if err := n.removeStaleDisks(); err != nil {
		return fmt.Errorf("unmounting root disks of an earlier daemon: %w", err)
	}
	if err := makeOwn(n.cfg.RunDir); err != nil {
		return err
	}
	for _, dir := range []string{"mem", "images", "snapshots", "kernels", "logs"} {
		if err := makeOwn(n.cfg.path(dir)); err != nil {
			return err
		}
	}
	info, err := n.deps.VMM.Info(ctx)
	if err != nil {
		return fmt.Errorf("asking for the VMM: %w", err)
	}
	n.budget.overheadMiB = info.Overhead.UsedMiB
	n.cfg.Limits = vmmLimits(n.cfg.Limits, info.Overhead)
	if n.cpu, err = snapshot.HostCPU(); err != nil {
		return err
	}
	if n.net, err = n.deps.OpenNetwork(ctx); err != nil {
		return fmt.Errorf("opening the network: %w", err)
	}
	if n.images, err = n.deps.OpenImages(ctx, n.cfg.path("images")); err != nil {
		return fmt.Errorf("opening the image store: %w", err)
	}
	if n.kernel, err = n.deps.OpenKernel(ctx, n.cfg.path("kernels")); err != nil {
		return fmt.Errorf("preparing the guest kernel: %w", err)
	}
	if n.snaps, err = snapshot.Open(n.cfg.path("snapshots")); err != nil {
		return err
	}
	if n.db, err = openDatabase(ctx, n.cfg.path("skep.db")); err != nil {
		return err
	}
	n.logs = newLogStore(n.cfg.path("logs"), n.cfg.LogBytes)
	return n.load(ctx)
}

// Limits of a VMM that are not set. A VMM has some threads of its own beside one
// for each vCPU; QEMU up to 64 for the disk. They need less than a processor.
const (
	vmmPIDs = 128
	vmmCPUs = 1
)

// vmmLimits puts defaults in place of zeros, and no limit in place of less.
func vmmLimits(l vmm.Limits, o vmm.Overhead) vmm.Limits {
	l.MemoryMiB = max(orDefault(l.MemoryMiB, o.MostMiB), 0)
	l.PIDs = max(orDefault(l.PIDs, vmmPIDs), 0)
	l.CPUs = max(orDefault(l.CPUs, vmmCPUs), 0)
	return l
}

// load finishes what a crash interrupted and reads the functions.
func (n *Node) load(ctx context.Context) error {
	doomed, err := n.db.doomed(ctx)
	if err != nil {
		return err
	}
	n.removeSnapshots("", doomed)
	deployments, err := n.db.functions(ctx)
	if err != nil {
		return err
	}
	for _, d := range deployments {
		p := n.newPool(d.fn.Name)
		p.current.Store(d)
		n.pools[d.fn.Name] = p
	}
	if store, ok := n.images.(imageCollector); ok { // those that are not idle are in use from now on
		if _, _, err := n.idleImages(ctx, store); err != nil {
			return err
		}
	}
	return n.logs.removeOthers(n.pools)
}

// abandon gives back what a failed open has got.
func (n *Node) abandon() error {
	n.cancel(nil)
	var err error
	if n.net != nil {
		err = n.net.Close()
	}
	if n.db != nil {
		err = errors.Join(err, n.db.close())
	}
	err = errors.Join(err, n.closeDisks())
	n.leaveRunDir()
	return errors.Join(err, n.lock.Close())
}

// leaveRunDir removes the directory of running machines, which is made by each
// Open, if it is empty.
func (n *Node) leaveRunDir() { _ = os.Remove(n.cfg.RunDir) }

// takeLock locks the data directory for as long as the file stays open. The
// kernel lets go of the lock when this process dies, however it dies.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b := make([]byte, 32)
		k, _ := f.ReadAt(b, 0)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: process %s", ErrLocked, orDefault(strings.TrimSpace(string(b[:k])), "unknown"))
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return f, nil
}
