package shim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"
)

// renewEvery is how often files that were delivered are compared with the host's:
// a kubelet takes longer than that to write a changed config map.
const renewEvery = 5 * time.Second

// fresh knows what a container's files were when they were delivered.
type fresh struct {
	mu   sync.Mutex // guards what follows
	seen map[string]content
	kept bool // somebody looks whether they change
}

// deliver delivers files, and takes away what was there the last time and is gone. What
// changes on the host meanwhile is delivered again.
func (f *fresh) deliver(ctx context.Context, dial dialer, all []mount) error {
	return f.each(all, func(m mount, now content) error { return deliver(ctx, dial, m, f.last(m).without(now)) })
}

// know takes files for delivered as they are now.
func (f *fresh) know(all []mount) error {
	return f.each(all, func(mount, content) error { return nil })
}

func (f *fresh) each(all []mount, do func(mount, content) error) error {
	for _, m := range all {
		now, err := contentOf(m.Source) // before it is read
		if err == nil {
			err = do(m, now)
		}
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.Path, err)
		}
		f.mu.Lock()
		if f.seen == nil {
			f.seen = map[string]content{}
		}
		f.seen[m.Path] = now
		f.mu.Unlock()
	}
	return nil
}

func (f *fresh) last(m mount) content {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[m.Path]
}

// keepFresh delivers what changes on the host anew, from the first call on, while the
// container runs.
func (r *room) keepFresh() {
	f := &r.fresh
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) > 0 && !f.kept {
		f.kept = true
		go r.renew()
	}
}

// renew delivers what changes on the host anew, and takes away what is removed there.
func (r *room) renew() {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.over:
			return
		case <-tick.C:
		}
		for _, m := range r.container.renewed() {
			now, err := contentOf(m.Source)
			if err != nil || now.sum == r.fresh.last(m).sum {
				continue
			}
			ctx, cancel := context.WithTimeout(r.events.ctx, time.Minute)
			_, err = r.container.measure()
			if err == nil {
				err = r.fresh.deliver(ctx, r.dial, []mount{m})
			}
			cancel()
			if err != nil && !r.isEnding() {
				r.log.Warn("delivering what has changed on the host", "path", m.Path, "error", err)
			}
		}
	}
}

// content is what a file or directory of the host's held at a time.
type content struct {
	sum   [sha256.Size]byte // changes when something in it does: its name, size, time of change or, of a link, target
	names []string          // of what is below it, each after its directory
}

func contentOf(source string) (c content, err error) {
	h := sha256.New()
	root, err := filepath.EvalSymlinks(source)
	if err != nil {
		return c, err
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		fmt.Fprintf(h, "%q %v %d %d %q\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano(), target)
		if name, err := filepath.Rel(root, path); err == nil && name != "." {
			c.names = append(c.names, name)
		}
		return nil
	})
	c.sum = [sha256.Size]byte(h.Sum(nil))
	return c, err
}

// without are the names that another has not; what is below one of them goes with it.
func (c content) without(other content) (gone []string) {
	has, went := map[string]bool{}, map[string]bool{}
	for _, name := range other.names {
		has[name] = true
	}
	for _, name := range c.names {
		switch {
		case has[name]:
		case went[path.Dir(name)]:
			went[name] = true
		default:
			went[name] = true
			gone = append(gone, name)
		}
	}
	return gone
}
