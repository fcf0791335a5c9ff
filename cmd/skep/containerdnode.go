package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/guest/kernel"
)

// How often it is looked whether an installation is still whole, and whether what runs
// has ended that keeps a removal from being.
const (
	nodeLook   = 5 * time.Minute
	removeLook = 5 * time.Second
)

// equipNode installs, or removes, what makes skep a runtime of the node, restarts its
// containerd where its configuration has changed, and stays until ctx ends.
func (c *cli) equipNode(ctx context.Context, h containerd.Host, from string, remove bool) error {
	do, look := func() ([]string, error) { return h.Install(ctx, from) }, nodeLook
	if remove {
		do, look = h.Uninstall, removeLook
	}
	var said []string
	for {
		was, err := h.Configured(ctx)
		if err != nil {
			return err
		}
		pending := h.Pending()
		if was == remove && !pending { // it is about to change
			if err := h.Pend(true); err != nil {
				return err
			}
		}
		steps, err := do()
		if err != nil || len(steps) > 0 && !slices.Equal(steps, said) {
			if err := c.told(steps, err); err != nil {
				return err
			}
		}
		said = steps
		now, err := h.Configured(ctx)
		if err != nil {
			return err
		}
		if was == now && !pending {
			err = h.Pend(false)
		} else if err = h.Restart(ctx); err == nil {
			c.say("containerd was restarted")
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(look):
		}
	}
}

// copyKernels copies the guest kernels that an image brings, unless there is one.
func copyKernels(from, to string) (string, error) {
	if _, err := kernel.Default(to); err == nil {
		return "", nil
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		// Under another name until it is whole: a copy may be cut short.
		tmp := filepath.Join(to, ".copy-"+e.Name())
		if err := os.RemoveAll(tmp); err != nil {
			return "", err
		}
		if err := os.CopyFS(tmp, os.DirFS(filepath.Join(from, e.Name()))); err != nil {
			return "", err
		}
		if err := os.Rename(tmp, filepath.Join(to, e.Name())); err != nil {
			return "", err
		}
	}
	k, err := kernel.Default(to)
	if err != nil {
		return "", err
	}
	return "copied guest kernel " + k.Path, nil
}
