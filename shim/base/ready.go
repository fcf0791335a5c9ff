package base

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/shim/base/ready"
	"github.com/skep-dev/skep/snapshot"
)

const (
	readyPrefix  = ready.Prefix
	readyVersion = "ready 2 "
	// mostReady is how many ready snapshots of one image are kept: the newest.
	mostReady = 8
	// unreadyFor is for how long it is believed that a container gets no ready
	// snapshot.
	unreadyFor = 24 * time.Hour
)

// readyFamily is what a ready snapshot's "function" is called, readyOf how those of
// all images with that root disk begin.
func (s Spec) readyFamily(key string) string {
	return readyOf(s.Disk.DiskDigest) + short(fmt.Sprint(key, s.MemoryMiB, s.VCPUs), 8)
}

func readyOf(diskDigest string) string { return readyPrefix + short(diskDigest, 6) + "-" }

func (h *Host) wantReady(s Spec, key string) snapshot.Want {
	return h.want(s, s.readyFamily(key), readyVersion+key)
}

// Ready is the ready snapshot that a key stands for: there, or to be made by whoever
// has this.
type Ready struct {
	host  *Host
	spec  Spec
	key   string
	snap  *snapshot.Snapshot // nil: it is to be made
	claim *filelock.Lock
	guest *Guest // booted, to become one
	used  bool   // the snapshot is a guest's
}

// Ready finds the ready snapshot for a key, or has the caller make it. Nil says that
// neither is to be: why says what it knows of that, or that another makes it.
func (h *Host) Ready(ctx context.Context, s Spec, key string) (r *Ready, why string, err error) {
	if why := h.unready(s, key); why != "" {
		return nil, why, nil
	}
	r = &Ready{host: h, spec: s, key: key}
	if r.snap, _ = h.snaps.Newest(ctx, h.wantReady(s, key)); r.snap != nil {
		return r, "", nil
	}
	r.claim, err = filelock.TryClaim(filepath.Join(h.dir("claims"), s.readyFamily(key)))
	if errors.Is(err, filelock.ErrHeld) {
		return nil, "another makes it just now", nil
	}
	if err != nil {
		return nil, "", err
	}
	r.snap, _ = h.snaps.Newest(ctx, h.wantReady(s, key)) // made meanwhile
	if r.snap != nil {
		return r, "", r.claim.Release()
	}
	return r, "", nil
}

// There says that the snapshot is there.
func (r *Ready) There() bool { return r.snap != nil }

// Start starts a guest from the snapshot, in which the process runs that the key
// stands for, and stands still until VM.Clone; or boots one that is to become the
// snapshot, and is told nothing yet. It is called once.
func (r *Ready) Start(ctx context.Context, n *network.Joined) (g *Guest, err error) {
	r.spec.Network = n
	if r.snap != nil {
		r.used = true
		return r.host.restore(ctx, r.spec, r.snap, true)
	}
	r.guest, err = r.host.boot(ctx, r.spec, r.spec.RunDir)
	if err != nil {
		return nil, fmt.Errorf("booting a microVM: %w", err)
	}
	return r.guest, nil
}

// Publish makes the booted guest the snapshot, and starts one from it in its place,
// as Start does. The guest ends, whether it works or not. Of the image's ready
// snapshots the oldest go that are too many.
func (r *Ready) Publish(ctx context.Context) (*Guest, error) {
	h := r.host
	id, err := h.take(ctx, r.spec, r.guest, snapshot.Manifest{Function: r.spec.readyFamily(r.key), Reason: "ready", Spec: readyVersion + r.key})
	if err != nil {
		return nil, fmt.Errorf("making a snapshot: %w", err)
	}
	if err := h.bound(readyOf(r.spec.Disk.DiskDigest)); err != nil {
		h.log.Warn("removing older snapshots of an image", "error", err)
	}
	if r.snap, err = h.snaps.Acquire(ctx, id, h.wantReady(r.spec, r.key)); err != nil {
		return nil, err
	}
	r.used = true
	r.Release()
	g, err := h.restore(ctx, r.spec, r.snap, true)
	if err != nil {
		return nil, err
	}
	g.Made = true
	return g, nil
}

// GiveUp removes the snapshot, if it is there, and notes why there is to be none, so
// that the next container does not try in vain.
func (r *Ready) GiveUp(why string) {
	var err error
	if r.snap != nil {
		if err = r.host.snaps.Remove(r.snap.Manifest.ID); errors.Is(err, snapshot.ErrNotFound) {
			err = nil
		}
	}
	if err = errors.Join(err, os.WriteFile(r.host.note(r.spec, r.key), []byte(why), 0o600)); err != nil {
		r.host.log.Warn("giving a ready snapshot up", "error", err)
	}
	r.Release()
}

// Release lets others make it, and lets go of a snapshot that no guest was started
// from. It is idempotent; nil has nothing to let go of.
func (r *Ready) Release() {
	if r == nil {
		return
	}
	if r.snap != nil && !r.used {
		r.snap.Release()
	}
	if err := r.claim.Release(); err != nil {
		r.host.log.Warn("releasing a claim", "error", err)
	}
}

// bound removes the oldest ready snapshots of an image.
func (h *Host) bound(prefix string) error {
	list, err := h.snaps.List("", nil) // the newest first
	if err != nil {
		return err
	}
	var errs []error
	n := 0
	for _, s := range list {
		if !strings.HasPrefix(s.Function, readyPrefix) || !strings.HasPrefix(s.Function, prefix) {
			continue
		}
		if n++; n > mostReady {
			errs = append(errs, h.snaps.Remove(s.ID))
		}
	}
	return errors.Join(errs...)
}

// unready says why a container gets no ready snapshot, by what was noted; "": nothing.
func (h *Host) unready(s Spec, key string) (why string) {
	st, err := os.Stat(h.note(s, key))
	if err != nil || time.Since(st.ModTime()) > unreadyFor {
		return ""
	}
	b, _ := os.ReadFile(h.note(s, key))
	return string(b)
}

func (h *Host) note(s Spec, key string) string {
	return filepath.Join(h.dir("unready"), s.readyFamily(key))
}

// forget removes old notes.
func (h *Host) forget() error {
	entries, err := os.ReadDir(h.dir("unready"))
	for _, e := range entries {
		if st, serr := e.Info(); serr == nil && time.Since(st.ModTime()) > unreadyFor {
			if rerr := os.Remove(filepath.Join(h.dir("unready"), e.Name())); !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}
