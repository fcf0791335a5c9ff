package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// filesOf lists the files that a restore of the function reads: everything of
// its newest usable snapshot, and its root disk.
func (d *daemon) filesOf(ctx context.Context, function string) ([]string, error) {
	f, ok := d.node.Function(function)
	if !ok {
		return nil, fmt.Errorf("function %q is gone", function)
	}
	img, err := d.images.Get(f.ImageDigest)
	if err != nil {
		return nil, fmt.Errorf("finding the root disk of %s: %w", function, err)
	}
	files := []string{img.Disk}
	list, err := d.node.Snapshots(ctx, function)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if !s.Usable {
			continue
		}
		dir, err := d.node.SnapshotDir(s.ID)
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
		break
	}
	return files, nil
}

// vmmBinary is the path of the VMM's program, "" if it is not found.
func (d *daemon) vmmBinary() string {
	name := d.cfg.QEMU
	if name == "" {
		name = "qemu-system-x86_64"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}
