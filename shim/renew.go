package shim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// renewEvery is how often files that were delivered are compared with the host's:
// a kubelet takes longer than that to write a changed config map.
const renewEvery = 5 * time.Second

// renew delivers what changes on the host anew, while the container runs. What
// is removed there stays in the guest.
func (r *room) renew(seen map[string][sha256.Size]byte) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.over:
			return
		case <-tick.C:
		}
		for _, m := range r.container.delivered() {
			now, err := signature(m.Source)
			if err != nil || now == seen[m.Path] {
				continue
			}
			ctx, cancel := context.WithTimeout(r.events.ctx, time.Minute)
			err = r.container.measure()
			if err == nil {
				err = deliver(ctx, r.dial, m)
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

// signature changes when a file below a path does: its name, size, time of change
// or, of a link, target.
func signature(root string) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	root, err = filepath.EvalSymlinks(root)
	if err != nil {
		return sum, err
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
		return nil
	})
	return [sha256.Size]byte(h.Sum(nil)), err
}
