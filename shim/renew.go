package shim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// renewEvery is how often files that were delivered are compared with the host's:
// a kubelet takes longer than that to write a changed config map.
const renewEvery = 5 * time.Second

// renew delivers what changes on the host anew, while the container runs, and takes
// away what is removed there.
func (r *room) renew(seen map[string]content) {
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
			if err != nil || now.sum == seen[m.Path].sum {
				continue
			}
			ctx, cancel := context.WithTimeout(r.events.ctx, time.Minute)
			err = r.container.measure()
			if err == nil {
				err = deliver(ctx, r.dial, m, seen[m.Path].without(now))
			}
			cancel()
			if err != nil {
				if !r.ending.Load() {
					r.log.Warn("delivering what has changed on the host", "path", m.Path, "error", err)
				}
				continue
			}
			seen[m.Path] = now
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
