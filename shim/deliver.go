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

// What is delivered to a guest is copied into its memory: it has to be small.
const (
	maxDelivered = 16 << 20 // bytes of a container's
	maxTrees     = 4096     // files of a container's
	maxReturned  = 64 << 10 // bytes of a file that goes back to the host
	maxNames     = 256 << 10
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

// inMemory are the directories that the guest makes in its memory.
func (c container) inMemory() (all []guest.Tmpfs) {
	for _, m := range c.Mounts {
		if m.Source == "" {
			t := guest.Tmpfs{Path: m.Path, Bytes: int64(m.SizeMiB) << 20, Mode: uint32(m.Mode)}
			if t.Mode == 0 {
				t.Mode = 0o755
			}
			if m.ReadOnly {
				t.Options = []string{"ro"}
			}
			all = append(all, t)
		}
	}
	return all
}

// delivered are the mounts that are copied in as files.
func (c container) delivered() (all []mount) {
	for _, m := range c.Mounts {
		if m.Source != "" && !m.Return && !slices.Contains(names, m.Path) { // those the agent writes
			all = append(all, m)
		}
	}
	return all
}

// renewed are the mounts whose content follows the host's: what is delivered, and
// of the names those that do not change with the clone.
func (c container) renewed() []mount { return append(c.delivered(), c.named()...) }

func (c container) named() (all []mount) {
	for _, m := range c.Mounts {
		if m.Source != "" && (m.Path == "/etc/hosts" || m.Path == "/etc/resolv.conf") {
			all = append(all, m)
		}
	}
	return all
}

// measure refuses what cannot be delivered, before anything is started.
func (c container) measure() error {
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
				bytes += info.Size()
			}
			if files++; files > maxTrees || bytes > maxDelivered {
				return fmt.Errorf("what is mounted from the host has more than %d files or %d MiB: a microVM gets copies of them in its memory", maxTrees, maxDelivered>>20)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.Path, err)
		}
	}
	return nil
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
	dir, base := path.Split(m.Path)
	removed := make([]string, 0, len(gone))
	for _, name := range gone {
		removed = append(removed, path.Join(base, name))
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
	go func() { w.CloseWithError(tree.PackChanged(root, filepath.Base(source), base, removed, w)) }()
	from := r
	if change != nil {
		changed, to := io.Pipe()
		go func() { err := change(r, to); _ = r.CloseWithError(errGuestFull); to.CloseWithError(err) }()
		from = changed
	}
	err = guest.CopyIn(ctx, conn, dir, from)
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
