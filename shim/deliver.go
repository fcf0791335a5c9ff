package shim

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tree"
)

// Bounds of files, in bytes; of what is delivered package guest has them.
const (
	maxReturned = 64 << 10 // of one that goes back to the host
	maxNames    = 256 << 10

	pageSize = 4096
)

// names reads what a container is called and whom it knows: /etc/hostname,
// /etc/hosts and /etc/resolv.conf, where they are mounted.
func (c container) names() (n guest.Names, err error) {
	n.Hostname = c.Hostname
	for _, m := range c.Mounts {
		var to *string
		switch m.Path {
		case "/etc/hosts":
			to = &n.Hosts
		case "/etc/resolv.conf":
			to = &n.Resolv
		case "/etc/hostname":
			if to = &n.Hostname; n.Hostname != "" {
				continue // the specification says it, too
			}
		default:
			continue
		}
		if m.Source == "" {
			continue
		}
		b, err := readLimited(m.Source, maxNames)
		if err != nil {
			return n, fmt.Errorf("mount at %s: %w", m.Path, err)
		}
		*to = cmp.Or(string(b), "\n") // an empty one is no other's
	}
	n.Hostname = strings.TrimSpace(n.Hostname)
	return n, nil
}

// mounts are what the guest makes of them.
func (c container) mounts() (all []guest.Mount, err error) {
	for _, m := range c.Mounts {
		if slices.Contains(names, m.Path) {
			continue // those the agent makes anyway
		}
		g := guest.Mount{Path: m.Path, Options: m.Flags}
		switch {
		case m.Image:
			g.Kind = guest.MountImage
		case m.Source == "":
			g.Bytes, g.Mode = int64(m.SizeMiB)<<20, uint32(cmp.Or(m.Mode, 0o755))
		default:
			is, err := os.Stat(m.Source)
			if err != nil {
				return nil, fmt.Errorf("mount at %s: %w", m.Path, err)
			}
			if g.Kind = guest.MountFile; is.IsDir() {
				g.Kind = guest.MountDirectory
			}
		}
		all = append(all, g)
	}
	return all, nil
}

// readonlyPaths are what the container may not write to, of its files: those by which
// it knows itself as well, unless they are mounted for that.
func (c container) readonlyPaths() []string {
	all := slices.Clone(c.ReadonlyPaths)
	for _, name := range append([]string{"/run/skep/instance"}, names...) {
		ro := c.ReadOnly
		for _, m := range c.Mounts {
			if m.Path == name {
				ro = slices.Contains(m.Flags, "ro")
			}
		}
		if ro {
			all = append(all, name)
		}
	}
	return all
}

// delivered are the mounts whose content is copied in.
func (c container) delivered() (all []mount) {
	for _, m := range c.Mounts {
		if m.Source != "" && !slices.Contains(names, m.Path) { // those the agent writes
			all = append(all, m)
		}
	}
	return all
}

// renewed are the mounts whose content follows the host's: what is delivered and does
// not go the other way, and of the names those that do not change with the clone.
func (c container) renewed() []mount {
	return append(slices.DeleteFunc(c.delivered(), func(m mount) bool { return m.Return }), c.named()...)
}

func (c container) named() (all []mount) {
	for _, m := range c.Mounts {
		if m.Source != "" && (m.Path == "/etc/hosts" || m.Path == "/etc/resolv.conf") {
			all = append(all, m)
		}
	}
	return all
}

// measure refuses what cannot be delivered, before anything is started, and says how
// many MiB that takes.
func (c container) measure() (mib int, err error) {
	var bytes int64
	files := 0
	for _, m := range c.delivered() {
		err := filepath.WalkDir(m.Source, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			switch mode := info.Mode(); {
			case mode&(fs.ModeDevice|fs.ModeSocket|fs.ModeNamedPipe) != 0:
				return fmt.Errorf("%s is a device, socket or pipe of the host's, which a microVM cannot have", p)
			case mode.IsRegular():
				bytes += (info.Size() + pageSize - 1) / pageSize * pageSize
			}
			if files++; files > guest.MaxDeliveredFiles || bytes > guest.MaxDelivered {
				return fmt.Errorf("what is mounted from the host has more than %d files or %d MiB: a microVM gets copies of them in its memory", guest.MaxDeliveredFiles, guest.MaxDelivered>>20)
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("mount at %s: %w", m.Path, err)
		}
	}
	return int(bytes >> 20), nil
}

// enlarge gives the guest memory for so much that is delivered, twice: what replaces it
// is there beside it for a while. Less than a MiB is in what a guest has for itself.
func (c *container) enlarge(mib int) {
	if c.Settings.MemoryMiB == 0 {
		c.MemoryMiB = min(maxMemoryMiB, roundUp(c.MemoryMiB+2*mib, memoryStepMiB))
	}
}

// dialer opens connections to the guest's ExecPort.
type dialer func(ctx context.Context) (io.ReadWriteCloser, error)

// deliver copies a mount's source into the guest, over what was there. Gone is what
// was there and is to be no more, by its paths below the mount.
func deliver(ctx context.Context, dial dialer, m mount, gone []string) error {
	return send(ctx, dial, m, gone, nil)
}

// send is deliver of what change, which may be nil, makes of the tar stream.
func send(ctx context.Context, dial dialer, m mount, gone []string, change func(from io.Reader, to io.Writer) error) error {
	removed := make([]string, 0, len(gone))
	for _, name := range gone {
		removed = append(removed, path.Join(guest.Delivered, name))
	}
	source, err := filepath.EvalSymlinks(m.Source)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(source))
	if err != nil {
		return err
	}
	defer root.Close()
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(tree.PackChanged(root, filepath.Base(source), guest.Delivered, removed, w)) }()
	from := r
	if change != nil {
		changed, to := io.Pipe()
		go func() { err := change(r, to); _ = r.CloseWithError(errGuestFull); to.CloseWithError(err) }()
		from = changed
	}
	err = guest.Deliver(ctx, conn, m.Path, from)
	_ = from.CloseWithError(errGuestFull)
	_ = r.CloseWithError(errGuestFull)
	return err
}

var errGuestFull = errors.New("the guest takes no more")

// takeBack writes what the guest has in a file to the host's.
func takeBack(ctx context.Context, dial dialer, m mount) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(guest.CopyOut(ctx, conn, m.Path, w)) }()
	defer r.CloseWithError(errors.New("enough"))
	t := tar.NewReader(r)
	h, err := t.Next()
	if refused := (*guest.RefusedError)(nil); err == io.EOF || errors.As(err, &refused) {
		return nil // nothing was written there
	}
	if err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("%s is no file in the guest", m.Path)
	}
	b, err := io.ReadAll(io.LimitReader(t, maxReturned))
	if err != nil {
		return err
	}
	// Not created: only what was mounted is written to.
	f, err := os.OpenFile(m.Source, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func readLimited(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return b, err
}
