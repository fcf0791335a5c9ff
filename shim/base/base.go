// Package base starts the microVMs of containers, from snapshots that all shims of
// a host share. There are two kinds:
//
//   - A base snapshot is of a guest that has a root and an agent, and has not been
//     told anything yet: no argument, variable, name, file or secret of any
//     container is in it. So all containers of one image and size share it, and the
//     first boots it.
//   - A ready snapshot is of a guest in which a container's process runs already, and
//     serves. Those containers share it that are the same but for what a clone can be
//     told (its name, whom it knows, files), by a key that the caller makes.
//
// Package shim calls it when a container is created and started.
package base

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/internal/tracing"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/choose"
)

// Host is what the microVMs of this host's containers share: files below the data
// directory, which other processes use at the same time.
type Host struct {
	Images *image.Store

	cfg      config.Config
	log      *slog.Logger
	vmm      vmm.VMM
	info     vmm.Info
	kernel   kernel.Kernel
	ramdisk  initramfs.Initramfs
	cpu      snapshot.CPU
	snaps    *snapshot.Store
	policies *memory.Policies
	starter  *microvm.Starter
}

// Open opens what is below the data directory of the settings.
func Open(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *Host, err error) {
	h := &Host{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	for _, dir := range []string{cfg.DataDir, h.dir("mem"), h.dir("claims"), h.dir("initramfs"), h.dir("unready")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := cleanOwn(cfg); err != nil {
		log.Warn("clearing away what others have left", "error", err)
	}
	if h.Images, err = image.Open(h.dir("images"), image.Options{Logger: log}); err != nil {
		return nil, err
	}
	if h.snaps, err = snapshot.Open(h.dir("snapshots")); err != nil {
		return nil, err
	}
	if h.vmm, err = choose.VMM(ctx, cfg, log); err != nil {
		return nil, err
	}
	if h.info, err = h.vmm.Info(ctx); err != nil {
		return nil, err
	}
	if h.cpu, err = snapshot.HostCPU(); err != nil {
		return nil, err
	}
	if h.kernel, h.ramdisk, err = choose.Guest(cfg, h.dir("initramfs")); err != nil {
		return nil, err
	}
	h.policies = memory.New(memory.Options{Lone: true, Frozen: !cfg.Learning, SampleEvery: cfg.SampleEvery})
	h.starter = &microvm.Starter{VMM: h.vmm, Log: log, Connect: microvm.Connect}
	return h, nil
}

func (h *Host) dir(name string) string { return filepath.Join(h.cfg.DataDir, name) }

// Close lets go of what was opened. Every guest must have been closed.
func (h *Host) Close() error {
	var errs []error
	if h.policies != nil {
		errs = append(errs, h.policies.Close())
	}
	if h.Images != nil {
		errs = append(errs, h.Images.Close())
	}
	return errors.Join(errs...)
}

// Spec is a guest that is wanted.
type Spec struct {
	ID        string // letters, digits and '-'; unique on the host
	Mark      string // NAME=value in the environment of its VMM
	RunDir    string // for what belongs to the VMM; it is made, and removed by Close
	Disk      image.Image
	MemoryMiB int
	VCPUs     int
	Policy    string // of memory; "" is the default
	Boot      bool   // without a snapshot
	Port      int    // at which its server can be asked (microvm.VM.Ask); 0: none is known
	Network   *network.Joined
	// Started is called with the id of the guest's VMM before that has its memory; not
	// with that of another which only makes the snapshot.
	Started func(pid int) error
}

// Guest is a microVM whose agent waits to be told what it is for.
type Guest struct {
	*microvm.VM
	Snapshot string // that it was restored from; "" if it was booted
	Made     bool   // the snapshot was made for it

	dir      string
	releases []func()
	closing  sync.Once
}

// Close ends the guest; nothing of it is left then. It is idempotent.
func (g *Guest) Close() {
	g.closing.Do(func() {
		g.VM.Close()
		g.abandon()
	})
}

// Limits of time, for hosts that emulate.
const (
	bootLimit    = 5 * time.Minute
	restoreLimit = 90 * time.Second
)

// Start starts a guest: from its base snapshot, which is made if there is none.
func (h *Host) Start(ctx context.Context, s Spec) (*Guest, error) {
	s.Port = 0 // nobody serves in there yet
	if s.Boot {
		g, err := h.boot(ctx, s, s.RunDir)
		if err != nil {
			return nil, fmt.Errorf("booting a microVM: %w", err)
		}
		return g, nil
	}
	snap, made, err := h.base(ctx, s)
	if err != nil {
		return nil, err
	}
	g, err := h.restore(ctx, s, snap, false)
	if err != nil {
		return nil, err
	}
	g.Made = made
	return g, nil
}

// family is what a base snapshot's "function" is called.
func (s Spec) family() string {
	return fmt.Sprintf("%s%s-%d-%d", basePrefix, short(s.Disk.DiskDigest, 6), s.MemoryMiB, s.VCPUs)
}

const basePrefix = "base-"

// short is a name for a text, of so many bytes in hexadecimal.
func short(text string, bytes int) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:bytes])
}

// specVersion is part of every base snapshot: what its guest was when it was made.
const specVersion = "base 1"

func (h *Host) want(s Spec, family, spec string) snapshot.Want {
	return snapshot.Want{Function: family, ImageDigest: s.Disk.Digest, DiskDigest: s.Disk.DiskDigest, GuestKernel: h.kernel.Digest,
		Initramfs: h.ramdisk.Digest, Spec: spec, HostKernel: snapshot.HostKernel(), VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, VMM: h.info, CPU: h.cpu}
}

// base returns the snapshot, made unless it is there. Of several processes that
// want it one makes it; the others wait.
func (h *Host) base(ctx context.Context, s Spec) (snap *snapshot.Snapshot, made bool, err error) {
	want := h.want(s, s.family(), specVersion)
	if snap, _ = h.snaps.Newest(ctx, want); snap != nil {
		return snap, false, nil
	}
	claim, err := filelock.Claim(ctx, filepath.Join(h.dir("claims"), s.family()))
	if err != nil {
		return nil, false, fmt.Errorf("waiting for another to make the snapshot: %w", err)
	}
	defer claim.Release()
	if snap, _ = h.snaps.Newest(ctx, want); snap != nil {
		return snap, false, nil
	}
	mctx, span := tracing.Start(ctx, "make base snapshot")
	id, err := h.make(mctx, s)
	tracing.End(span, err)
	if err != nil {
		return nil, false, fmt.Errorf("making a snapshot to start from: %w", err)
	}
	snap, err = h.snaps.Acquire(ctx, id, want)
	return snap, true, err
}

// make boots a guest and turns it into a snapshot.
func (h *Host) make(ctx context.Context, s Spec) (id string, err error) {
	s.Started = nil
	g, err := h.boot(ctx, s, s.RunDir+"-base")
	if err != nil {
		return "", err
	}
	return h.take(ctx, s, g, snapshot.Manifest{Function: s.family(), Reason: "base", Spec: specVersion})
}

// take turns a booted guest into a snapshot, of which m says the function, the
// reason and the spec. The guest ends, whether it works or not.
func (h *Host) take(ctx context.Context, s Spec, g *Guest, m snapshot.Manifest) (id string, err error) {
	stage, err := h.snaps.Stage(m.Function)
	if err != nil {
		g.Close()
		return "", err
	}
	defer stage.Abort()
	err = g.VM.Snapshot(ctx, stage.State(), stage.Memory())
	g.Close()
	if err != nil {
		return "", err
	}
	m.VMM, m.CPU, m.HostKernel = h.info, h.cpu, snapshot.HostKernel()
	m.GuestKernel, m.Initramfs, m.Agent = h.kernel.Digest, h.ramdisk.Digest, h.ramdisk.Agent
	m.ImageDigest, m.DiskDigest, m.VCPUs, m.MemoryMiB = s.Disk.Digest, s.Disk.DiskDigest, s.VCPUs, s.MemoryMiB
	published, err := stage.Publish(ctx, m)
	return published.ID, err
}

// boot starts a bare guest from its kernel.
func (h *Host) boot(ctx context.Context, s Spec, dir string) (_ *Guest, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("not there after %v", bootLimit))
	defer cancel()
	g := &Guest{dir: dir}
	defer func() {
		if err != nil {
			g.abandon()
			err = cause.Because(ctx, err)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	// As what is never published: it goes with this process at the latest.
	mem, err := atomicfile.Stage(h.dir("mem"), s.ID)
	if err != nil {
		return nil, err
	}
	g.releases = append(g.releases, func() { mem.Close() })
	g.VM, err = h.starter.Boot(ctx, microvm.BootSpec{Spec: h.spec(s, dir), MemoryDir: mem.Dir})
	return g, err
}

// restore starts a guest from the snapshot, which is the guest's from then on. Held,
// it waits to be told that it is a clone.
func (h *Host) restore(ctx context.Context, s Spec, snap *snapshot.Snapshot, held bool) (*Guest, error) {
	if err := used(snap); err != nil {
		h.log.Warn("noting that a snapshot is used", "snapshot", snap.Manifest.ID, "error", err)
	}
	g, err := h.tryRestore(ctx, s, snap, held)
	if err == nil || microvm.SnapshotsFault(err) {
		h.snaps.Restored(snap.Manifest.ID, err)
	}
	if err != nil {
		return nil, fmt.Errorf("restoring a microVM from snapshot %s: %w", snap.Manifest.ID, err)
	}
	return g, nil
}

func (h *Host) tryRestore(ctx context.Context, s Spec, snap *snapshot.Snapshot, held bool) (_ *Guest, err error) {
	limit := restoreLimit + time.Duration(s.MemoryMiB)*10*time.Millisecond
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not there after %v", limit))
	defer cancel()
	g := &Guest{dir: s.RunDir, Snapshot: snap.Manifest.ID, releases: []func(){snap.Release}}
	defer func() {
		if err != nil {
			g.abandon()
			err = cause.Because(ctx, err)
		}
	}()
	policy, err := h.policies.Lookup(s.Policy)
	if err != nil {
		return nil, err
	}
	// The session outlives the start.
	session, err := policy.Open(context.WithoutCancel(ctx), memory.Source{SnapshotID: snap.Manifest.ID, Path: snap.MemoryPath(), Size: snap.MemorySize(), Dir: snap.TraceDir()})
	if err != nil {
		return nil, fmt.Errorf("memory policy %q: %w", policy.Name(), err)
	}
	if err := os.Mkdir(s.RunDir, 0o700); err != nil {
		session.Close()
		return nil, err
	}
	defer h.Lane(ctx)()
	g.VM, err = h.starter.Restore(ctx, microvm.RestoreSpec{Spec: h.spec(s, s.RunDir), State: snap.StatePath(), Memory: snap.MemoryPath(), Session: session, Held: held})
	return g, err
}

// abandon removes what a guest has that did not start.
func (g *Guest) abandon() {
	for i := len(g.releases) - 1; i >= 0; i-- {
		g.releases[i]()
	}
	os.RemoveAll(g.dir)
}

// users are those that VMMs run as, one each: the first, to which the shim's
// process id is added, which no other shim has at the time.
const users = 1 << 30

func (h *Host) spec(s Spec, dir string) microvm.Spec {
	uid, gid := 0, 0
	if h.cfg.ConfineUser {
		uid, gid = users+os.Getpid(), users
	}
	return microvm.Spec{
		ID: s.ID,
		Machine: vmm.Config{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, Kernel: h.kernel.Path, Initramfs: h.ramdisk.Path, Cmdline: kernel.Cmdline(),
			RootDisk: s.Disk.Disk, Generation: h.ramdisk.Generation},
		Host: vmm.Host{ID: s.ID, Dir: dir, NetNS: s.Network.NetNS, Tap: s.Network.Tap, MAC: append(net.HardwareAddr(nil), guest.MAC...),
			UID: uid, GID: gid, Env: []string{s.Mark}, Started: s.Started},
		Dial:   s.Network.Dial,
		Server: microvm.Server{Name: "localhost", Port: s.Port, Connections: 1},
	}
}

// Overhead is memory of a VMM's process beside its guest's, in MiB, at most.
func (h *Host) Overhead() int { return h.info.Overhead.MostMiB }
